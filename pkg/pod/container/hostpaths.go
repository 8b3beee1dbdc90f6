package container

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/subpath"
)

// hostPath returns where the host's path of a mount is in the node, links followed. What
// the node does not show is attached for as long as the container is being created.
// What it may not have of the host may still be a path that it has itself.
func (b *Builder) hostPath(id, name string, m *runtimeapi.Mount) (string, error) {
	if b.HostTree == nil || !filepath.IsAbs(m.HostPath) {
		return filepath.EvalSymlinks(m.HostPath)
	}
	tree, hostErr := b.HostTree.Open(filepath.Clean(m.HostPath))
	if tree != nil {
		defer tree.Close()
		if m.Propagation == runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL {
			return subpath.AttachShared(b.SubPathDir+"-shared", m.HostPath, tree)
		}
		return subpath.Attach(b.subPathDir(id), name, tree)
	}
	own, err := filepath.EvalSymlinks(m.HostPath)
	if err != nil && hostErr != nil {
		return "", hostErr
	}
	return own, err
}

// hostFiles brings in what else of the host a container's configuration names, and
// returns the configuration to build from.
func (b *Builder) hostFiles(id string, cfg *runtimeapi.ContainerConfig) (*runtimeapi.ContainerConfig, error) {
	if b.HostTree == nil {
		return cfg, nil
	}
	for _, d := range cfg.Devices {
		if err := b.hostDevice(filepath.Clean(d.HostPath)); err != nil {
			return nil, err
		}
	}
	seccomp := cfg.GetLinux().GetSecurityContext().GetSeccomp()
	if seccomp.GetProfileType() != runtimeapi.SecurityProfile_Localhost || !filepath.IsAbs(seccomp.LocalhostRef) {
		return cfg, nil
	}
	path, err := b.hostPath(id, "seccomp", &runtimeapi.Mount{HostPath: seccomp.LocalhostRef})
	if err != nil {
		return nil, invalid("seccomp profile %s: %w", seccomp.LocalhostRef, err)
	}
	cfg = proto.CloneOf(cfg)
	cfg.Linux.SecurityContext.Seccomp.LocalhostRef = path
	return cfg, nil
}

// hostDevice attaches a device that the node does not show at its own place: the
// container's is bound from there, and again by an OCI runtime that restores it.
func (b *Builder) hostDevice(path string) error {
	if _, err := os.Lstat(path); err == nil || !filepath.IsAbs(path) {
		return nil
	}
	tree, err := b.HostTree.Open(path)
	if err != nil {
		return invalid("device %s: %w", path, err)
	}
	if tree == nil {
		return nil
	}
	defer tree.Close()
	if info, err := tree.Stat(); err != nil || info.Mode()&fs.ModeDevice == 0 {
		return invalid("device %s is not a device", path)
	}
	_, err = subpath.Attach(filepath.Dir(path), filepath.Base(path), tree)
	if errors.Is(err, fs.ErrExist) {
		return nil // another container was quicker
	}
	return err
}

// attachLogDir shows a pod's directory for logs at its own place where the node may have it of
// the host and does not show it; else the node's own of that name is used. It is made,
// on the host, where it is missing.
func (b *Builder) attachLogDir(dir string) error {
	if b.HostTree == nil || !filepath.IsAbs(dir) || isMounted(dir) {
		return nil
	}
	above, found, err := b.HostTree.OpenAbove(dir)
	if err != nil || above == nil {
		return nil // the node's own
	}
	defer above.Close()
	if found != dir {
		rest, err := filepath.Rel(found, dir)
		if err != nil {
			return err
		}
		if err := makeBelow(above, rest); err != nil {
			return fmt.Errorf("make the log's directory: %w", err)
		}
	}
	tree, err := b.HostTree.Open(dir)
	if err != nil || tree == nil {
		return err
	}
	defer tree.Close()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make the log's directory: %w", err)
	}
	return subpath.AttachOn(dir, tree)
}

func makeBelow(tree *os.File, rest string) error {
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", tree.Fd()))
	if err != nil {
		return err
	}
	defer root.Close()
	return root.MkdirAll(rest, 0o755)
}

// isMounted reports whether something is mounted on a directory itself.
func isMounted(dir string) bool {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_TYPE, &st)
	return err == nil && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}

// detachLogDir undoes attachLogDir once no container logs there any more: the kernel
// refuses it before (EBUSY), and where nothing is mounted (EINVAL). What the node itself has
// mounted there stays.
func (b *Builder) detachLogDir(c state.Container) {
	if b.HostTree == nil || c.Allocated.LogPath == "" || c.Config.V == nil {
		return
	}
	dir := strings.TrimSuffix(c.Allocated.LogPath, "/"+filepath.Clean(c.Config.V.LogPath))
	tree, found, err := b.HostTree.OpenAbove(dir)
	if err != nil || tree == nil {
		return
	}
	defer tree.Close()
	// Containers of the pod that were created at once may have mounted it each.
	for found == dir && isMounted(dir) && isSame(tree, dir) && unix.Unmount(dir, unix.UMOUNT_NOFOLLOW) == nil {
		_ = os.Remove(dir) // the mount point; another container may be about to use it
	}
}

func isSame(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(path)
	return err == nil && os.SameFile(a, b)
}
