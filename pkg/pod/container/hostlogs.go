package container

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/logging"
	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/subpath"
)

// hostLogs shows directories of logs in the node that the host has.
type hostLogs struct {
	tree HostTree // nil where the node shows all
	log  *slog.Logger
	once *logging.Once
}

// attach shows the directory of a pod's logs at its own place where the node may have
// it of the host and does not show it; where it may not (the home, /tmp), what of the
// log's path it may: the directories below, or the file. They are made, on the host,
// where they are missing. Else the node's own of that name is used, unless it is one that
// only the host has: ErrLogDirectory.
func (h hostLogs) attach(dir, path string) error {
	if h.tree == nil || !filepath.IsAbs(dir) {
		return nil
	}
	for _, at := range []string{path, filepath.Dir(path), dir} {
		detachRemoved(at)
	}
	if isMounted(dir) || isMounted(path) {
		return nil
	}
	refused := h.attachDir(dir)
	if refused == nil {
		return nil
	}
	if below := filepath.Dir(path); below != dir && (isMounted(below) || h.attachDir(below) == nil) {
		return nil
	}
	if h.attachFile(path) == nil {
		return nil
	}
	if !h.tree.HasOwn(dir) {
		return fmt.Errorf("%w: %w", ErrLogDirectory, refused)
	}
	h.log.Log(context.Background(), h.once.Level("logs in "+filepath.Dir(dir)),
		"a container's log is in the node's own directory, not in the host's: a client outside of the node cannot read it (said once, of others at level debug)", "path", path, "reason", refused)
	return nil
}

func (h hostLogs) attachDir(dir string) error {
	tree, found, err := h.tree.OpenAbove(dir)
	if err != nil || tree == nil {
		return err // or the node shows it
	}
	defer func() { tree.Close() }()
	if found != dir {
		rest, err := filepath.Rel(found, dir)
		if err == nil {
			err = makeBelow(tree, rest)
		}
		if err != nil {
			return fmt.Errorf("make the log's directory: %w", err)
		}
		above := tree
		if tree, err = h.tree.Open(dir); err != nil || tree == nil {
			tree = above
			return err
		}
		above.Close()
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make the log's directory: %w", err)
	}
	return subpath.AttachOn(dir, tree)
}

// attachFile does the same with the file alone. It cannot be replaced then by one of
// the same name: such a log is not rotated.
func (h hostLogs) attachFile(path string) error {
	tree, err := h.tree.OpenLog(path)
	if err != nil {
		return err
	}
	if tree == nil {
		return nil // the node shows it
	}
	defer tree.Close()
	if st, err := tree.Stat(); err != nil || !st.Mode().IsRegular() {
		return errors.Join(err, fmt.Errorf("%s is no regular file", path))
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return err
	}
	f.Close()
	return subpath.AttachOn(path, tree)
}

func makeBelow(tree *os.File, rest string) error {
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", tree.Fd()))
	if err != nil {
		return err
	}
	defer root.Close()
	return root.MkdirAll(rest, 0o755)
}

// isMounted reports whether something is mounted on a file or directory itself.
func isMounted(path string) bool {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_TYPE, &st)
	return err == nil && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}

// detach undoes attach once no container logs there any more: the kernel refuses
// it before (EBUSY), and where nothing is mounted (EINVAL). What the node itself has mounted
// there stays.
func (h hostLogs) detach(c state.Container) {
	path := c.Allocated.LogPath
	if h.tree == nil || path == "" || c.Config.V == nil {
		return
	}
	dir := strings.TrimSuffix(path, "/"+filepath.Clean(c.Config.V.LogPath))
	for _, at := range []string{path, filepath.Dir(path), dir} {
		h.detachAt(at)
	}
}

func (h hostLogs) detachAt(at string) {
	if !isMounted(at) {
		return
	}
	tree, err := h.tree.Open(at)
	if err != nil || tree == nil {
		return
	}
	defer tree.Close()
	// Containers of the pod that were created at once may have mounted it each.
	for isMounted(at) && isSame(tree, at) && unix.Unmount(at, unix.UMOUNT_NOFOLLOW) == nil {
	}
	if !isMounted(at) {
		_ = os.Remove(at) // the mount point; another container may be about to use it
	}
}

// detachRemoved unmounts a file or directory that the host has no more: who has removed
// it, and logs there again, wants a new one.
func detachRemoved(at string) {
	var st unix.Stat_t
	for isMounted(at) && unix.Lstat(at, &st) == nil && st.Nlink == 0 && unix.Unmount(at, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH) == nil {
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
