package ocispec

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const typeBind = "bind"

// mounts lays out the container's file systems: the kernel's own, the pod's
// files, then the request's, each of which replaces what would be at its path.
func (b *builder) mounts() error {
	own, err := b.requestedMounts()
	if err != nil {
		return err
	}
	for _, m := range append(b.kernelMounts(), b.podFiles()...) {
		if !slices.ContainsFunc(own, func(o specs.Mount) bool { return replaces(o.Destination, m.Destination) }) {
			b.spec.Mounts = append(b.spec.Mounts, m)
		}
	}
	b.spec.Mounts = append(b.spec.Mounts, own...)
	return nil
}

// replaces: a request's mount on a default one's path takes its place. One on /dev,
// /proc or /sys brings its own mounts below it, too.
func replaces(requested, def string) bool {
	if requested == def {
		return true
	}
	switch requested {
	case "/dev", "/proc", "/sys":
		return strings.HasPrefix(def, requested+"/")
	}
	return false
}

// sortMounts puts parents before children, and otherwise keeps the order.
func sortMounts(mounts []specs.Mount) {
	depth := func(m specs.Mount) int { return strings.Count(path.Clean(m.Destination), "/") }
	sort.SliceStable(mounts, func(i, j int) bool { return depth(mounts[i]) < depth(mounts[j]) })
}

// kernelMounts are /proc, /dev, /sys and what belongs into them.
func (b *builder) kernelMounts() []specs.Mount {
	access := "ro"
	if b.sec.Privileged {
		access = "rw"
	}
	proc := specs.Mount{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}}
	if !b.ownsPID() {
		proc = specs.Mount{Destination: "/proc", Type: typeBind, Source: "/proc", Options: []string{"rbind", "nosuid", "noexec", "nodev", "rslave"}}
	}
	sys := specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", access}}
	if !b.ownsNet() {
		sys = specs.Mount{Destination: "/sys", Type: typeBind, Source: "/sys", Options: []string{"rbind", "nosuid", "noexec", "nodev", "ro", "rslave"}}
	}
	out := []specs.Mount{
		proc,
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k", "nr_inodes=64k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: b.devptsOptions()},
	}
	if b.ownsIPC() {
		out = append(out, specs.Mount{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}})
	} else if _, err := os.Stat(filepath.Join(b.Host.DevRoot, "mqueue")); err == nil {
		out = append(out, b.bind("/dev/mqueue", filepath.Join(b.Host.DevRoot, "mqueue"), "rbind", "nosuid", "noexec", "nodev"))
	}
	out = append(out, sys)
	// A cgroup mount shows something only where containers have cgroups.
	if b.Host.Cgroup.Enabled() && b.Host.Cgroup.Version == 2 {
		out = append(out, specs.Mount{
			Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup",
			Options: []string{"nosuid", "noexec", "nodev", "relatime", b.cgroupAccess()},
		})
	}
	return out
}

// devptsOptions: terminals belong to group 5 (tty) where that ID exists.
func (b *builder) devptsOptions() []string {
	out := []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}
	if mapped(b.gids(), 5) {
		out = append(out, "gid=5")
	}
	return out
}

// podFiles are the files that all containers of the pod share.
func (b *builder) podFiles() []specs.Mount {
	access := "rw"
	if b.sec.ReadonlyRootfs {
		access = "ro"
	}
	var out []specs.Mount
	for _, f := range []struct{ dst, src string }{
		{"/etc/hostname", b.Files.Hostname}, {"/etc/hosts", b.Files.Hosts}, {"/etc/resolv.conf", b.Files.ResolvConf},
	} {
		if f.src != "" {
			out = append(out, b.bind(f.dst, f.src, "rbind", "rprivate", access))
		}
	}
	if b.Files.Shm != "" {
		return append(out, b.bind("/dev/shm", b.Files.Shm, "rbind", "rprivate", "nosuid", "noexec", "nodev", "rw"))
	}
	return append(out, specs.Mount{
		Destination: "/dev/shm", Type: "tmpfs", Source: "shm",
		Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k", "nr_inodes=64k"},
	})
}

// bind makes a bind mount. The source's own restrictions are repeated: in a user
// namespace the kernel refuses a remount that would lift one, and runc asks for
// just that when they are left out.
func (b *builder) bind(dst, src string, options ...string) specs.Mount {
	if b.Host.MountFlags != nil {
		for _, flag := range b.Host.MountFlags(src) {
			if flag == "ro" {
				options = slices.DeleteFunc(options, func(o string) bool { return o == "rw" })
			}
			if !slices.Contains(options, flag) && !(flag == "ro" && slices.Contains(options, "rro")) {
				options = append(options, flag)
			}
		}
	}
	return specs.Mount{Destination: dst, Type: typeBind, Source: src, Options: options}
}

// requestedMounts checks and translates the container's mounts.
func (b *builder) requestedMounts() ([]specs.Mount, error) {
	var out []specs.Mount
	for _, m := range b.Mounts {
		mount, err := b.requestedMount(m)
		if err != nil {
			return nil, err
		}
		out = append(out, mount)
	}
	tmpfs, err := b.extraTmpfs()
	if err != nil {
		return nil, err
	}
	out = append(out, tmpfs...)
	sortMounts(out)
	return out, nil
}

func (b *builder) requestedMount(m *runtimeapi.Mount) (specs.Mount, error) {
	none := specs.Mount{}
	dst, err := destination(m.GetContainerPath())
	if err != nil {
		return none, err
	}
	src, info, err := hostSource(m.GetHostPath())
	if err != nil {
		return none, invalid("mount on %s: %w", dst, err)
	}
	access, err := b.access(m, info.IsDir())
	if err != nil {
		return none, invalid("mount on %s: %w", dst, err)
	}
	propagation, err := b.propagation(m, src)
	if err != nil {
		return none, invalid("mount on %s: %w", dst, err)
	}
	options := []string{"rbind", propagation, access}
	if err := b.checkMountOptions(src, m.GetMountOptions()); err != nil {
		return none, invalid("mount on %s: %w", dst, err)
	}
	options = append(options, m.GetMountOptions()...)
	if m.GetSelinuxRelabel() && b.Host.SELinux {
		b.warn("mount on %s: SELinux relabelling needs root and was left out", dst)
	}
	mount := b.bind(dst, src, options...)
	if len(m.GetUidMappings()) > 0 || len(m.GetGidMappings()) > 0 {
		if err := b.idMapped(&mount, m); err != nil {
			return none, invalid("mount on %s: %w", dst, err)
		}
	}
	return mount, nil
}

func destination(p string) (string, error) {
	if !path.IsAbs(p) || strings.ContainsRune(p, 0) {
		return "", invalid("mount path %.80q in the container is not absolute", p)
	}
	if err := carriable("mount path", p); err != nil {
		return "", err
	}
	if p = path.Clean(p); p == "/" {
		return "", invalid("a mount cannot replace the root file system")
	}
	return p, nil
}

// hostSource follows links to the real path, which must exist (comment of the CRI's
// Mount.host_path).
func hostSource(p string) (string, os.FileInfo, error) {
	if !filepath.IsAbs(p) {
		return "", nil, invalid("host path %.80q is not absolute", p)
	}
	if err := carriable("host path", p); err != nil {
		return "", nil, err
	}
	resolved, err := filepath.EvalSymlinks(p)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil, invalid("host path %s does not exist", p)
	}
	if err != nil {
		return "", nil, err
	}
	info, err := os.Stat(resolved)
	return resolved, info, err
}

// access returns "rw", "ro" or "rro".
func (b *builder) access(m *runtimeapi.Mount, isDir bool) (string, error) {
	image := m.GetImage().GetImage() != ""
	switch {
	case m.GetRecursiveReadOnly() && !m.GetReadonly():
		return "", errors.New("recursive_read_only without readonly")
	case m.GetRecursiveReadOnly() && m.GetPropagation() != runtimeapi.MountPropagation_PROPAGATION_PRIVATE:
		return "", errors.New("recursive_read_only with a propagation other than private")
	case m.GetRecursiveReadOnly() && !b.Host.RecursiveReadOnly:
		return "", fmt.Errorf("%w: it needs Linux 5.12 or newer", ErrRecursiveReadOnly)
	case m.GetRecursiveReadOnly() && !b.Features.RecursiveReadOnlyMounts:
		return "", fmt.Errorf("%w by the runtime handler %q", ErrRecursiveReadOnly, b.Handler)
	case m.GetRecursiveReadOnly() && isDir:
		return "rro", nil
	case m.GetReadonly() || image:
		return "ro", nil // nothing can be mounted below a file
	}
	return "rw", nil
}

// propagation returns the mount's option and raises the root's own propagation,
// which limits that of all mounts in it.
func (b *builder) propagation(m *runtimeapi.Mount, src string) (string, error) {
	root := &b.spec.Linux.RootfsPropagation
	switch p := m.GetPropagation(); p {
	case runtimeapi.MountPropagation_PROPAGATION_PRIVATE:
		return "rprivate", nil
	case runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		if err := propagates(src, false); err != nil {
			return "", err
		}
		if *root == "" {
			*root = "rslave"
		}
		return "rslave", nil
	case runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		if b.Namespaces.User != "" {
			return "", errors.New("bidirectional propagation does not work out of a pod's own user namespace")
		}
		if err := propagates(src, true); err != nil {
			return "", err
		}
		*root = "rshared"
		return "rshared", nil
	default:
		return "", invalid("unknown propagation %d", p)
	}
}
