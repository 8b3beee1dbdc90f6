package ocispec

import "github.com/subpod/subpod/pkg/cgroup"

// What a container that can make cgroups may have below its own: how many, since each takes
// memory of the kernel, and how deep, so that with the longest names no path is too long for
// those who read and remove them (PATH_MAX).
const (
	maxCgroups     = "1024"
	maxCgroupDepth = "12"
)

// writableCgroup refuses a writable cgroup where the container could change its own limits,
// and bounds what it can make. It has a cgroup namespace of its own always: the mount's root is
// the container's cgroup, whose limits are its parent's affair if the file system was mounted
// with nsdelegate.
func (b *builder) writableCgroup() error {
	if !b.WritableCgroup {
		return nil
	}
	const asked = "a writable cgroup is asked for, and "
	switch d := b.Host.Cgroup; {
	case !d.Enabled():
		return invalid(asked+"containers have no cgroups: %s", d.Reason)
	case !d.Bounded:
		return invalid(asked+"%s was mounted without nsdelegate, so the container could lift its own limits: mount -o remount,nsdelegate %[1]s, as root, on the host", cgroup.Mount)
	}
	limits := b.spec.Linux.Resources
	if limits.Unified == nil {
		limits.Unified = map[string]string{}
	}
	limits.Unified["cgroup.max.descendants"], limits.Unified["cgroup.max.depth"] = maxCgroups, maxCgroupDepth
	return nil
}

// cgroupAccess is the option of the mount of the container's cgroup.
func (b *builder) cgroupAccess() string {
	if b.WritableCgroup || b.sec.Privileged {
		return "rw"
	}
	return "ro"
}
