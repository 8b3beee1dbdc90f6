package ocispec

import (
	"cmp"
	"path"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// DefaultMaskedPaths and DefaultReadonlyPaths are what the kubelet asks for when
// nothing else is configured. The CRI passes the lists as they are, so an empty list
// means none: clients of our own (run, play) put these in.
var (
	DefaultMaskedPaths = strings.Fields(`/proc/acpi /proc/asound /proc/interrupts /proc/kcore /proc/keys
		/proc/latency_stats /proc/sched_debug /proc/scsi /proc/timer_list /proc/timer_stats
		/sys/devices/virtual/powercap /sys/firmware`)
	DefaultReadonlyPaths = strings.Fields("/proc/bus /proc/fs /proc/irq /proc/sys /proc/sysrq-trigger")
)

// paths passes masked and read-only paths on; privileged containers have none.
func (b *builder) paths() error {
	if b.sec.Privileged {
		return nil
	}
	for _, list := range [][]string{b.sec.MaskedPaths, b.sec.ReadonlyPaths} {
		for _, p := range list {
			if !path.IsAbs(p) || carriable("", p) != nil {
				return invalid("masked or read-only path %.80q", p)
			}
		}
	}
	b.spec.Linux.MaskedPaths = append([]string(nil), b.sec.MaskedPaths...)
	b.spec.Linux.ReadonlyPaths = append([]string(nil), b.sec.ReadonlyPaths...)
	return nil
}

// labels sets the AppArmor profile and the SELinux label where the kernel has them.
func (b *builder) labels() error {
	if b.sec.Privileged {
		return nil
	}
	if err := b.apparmor(); err != nil {
		return err
	}
	return b.selinux()
}

// profile reads a SecurityProfile or, when it is not set, its deprecated string
// form. Neither means unconfined.
func profile(p *runtimeapi.SecurityProfile, deprecated string) (runtimeapi.SecurityProfile_ProfileType, string, error) {
	const local = "localhost/"
	switch {
	case p != nil:
		if p.ProfileType != runtimeapi.SecurityProfile_Localhost && p.LocalhostRef != "" {
			return 0, "", invalid("security profile %s with a localhost_ref", p.ProfileType)
		}
		return p.ProfileType, p.LocalhostRef, nil
	case deprecated == "" || deprecated == "unconfined":
		return runtimeapi.SecurityProfile_Unconfined, "", nil
	case deprecated == "runtime/default" || deprecated == "docker/default":
		return runtimeapi.SecurityProfile_RuntimeDefault, "", nil
	case strings.HasPrefix(deprecated, local):
		return runtimeapi.SecurityProfile_Localhost, strings.TrimPrefix(deprecated, local), nil
	}
	return 0, "", invalid("unknown security profile %.80q", deprecated)
}

// apparmor: an unprivileged user can change into a loaded profile but not load
// one, so there is no runtime default.
func (b *builder) apparmor() error {
	//lint:ignore SA1019 deprecated, but older clients send it
	kind, ref, err := profile(b.sec.Apparmor, b.sec.ApparmorProfile)
	if err != nil {
		return err
	}
	switch kind {
	case runtimeapi.SecurityProfile_Unconfined:
		return nil
	case runtimeapi.SecurityProfile_RuntimeDefault:
		if b.Host.AppArmor {
			b.warn("AppArmor: a default profile cannot be loaded without root; the container is unconfined by AppArmor")
		}
		return nil
	case runtimeapi.SecurityProfile_Localhost:
		ref = strings.TrimPrefix(ref, "localhost/")
		switch {
		case ref == "" || carriable("", ref) != nil:
			return invalid("AppArmor profile Localhost without a usable name")
		case !b.Host.AppArmor:
			return invalid("AppArmor profile %q: this kernel has no AppArmor", ref)
		}
		b.gen.SetProcessApparmorProfile(ref)
		return nil
	}
	return invalid("unknown AppArmor profile type %d", kind)
}

// selinux sets the label of the process when one is asked for. The CRI calls it
// optional: without SELinux it is left out.
func (b *builder) selinux() error {
	o := b.sec.GetSelinuxOptions()
	if o == nil || o.User == "" && o.Role == "" && o.Type == "" && o.Level == "" {
		return nil
	}
	if !b.Host.SELinux {
		b.warn("SELinux options are left out: this kernel has no SELinux")
		return nil
	}
	label := strings.Join([]string{
		cmp.Or(o.User, "system_u"), cmp.Or(o.Role, "system_r"), cmp.Or(o.Type, "container_t"), cmp.Or(o.Level, "s0"),
	}, ":")
	if err := carriable("SELinux label", label); err != nil {
		return err
	}
	b.gen.SetProcessSelinuxLabel(label)
	return nil
}
