package rootless

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// hostView is the name, in a copied-up directory, of the host's original.
const hostView = ".host"

// copiedDir is a directory with a tmpfs on it: root in the node may make and
// replace entries there, and what it does not touch links to the host's. (An
// overlay would not do: entries of unmapped owners cannot be copied up.)
type copiedDir struct {
	dir  string
	kept []string // directories below it that are the host's own again
}

// copyUpDir mounts the tmpfs. os.ErrNotExist when dir is not a directory.
func copyUpDir(dir string) (*copiedDir, error) {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, fmt.Errorf("copy up %s: %w", dir, err)
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, real, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return nil, fmt.Errorf("copy up %s: take its mounts: %w", dir, err)
	}
	defer unix.Close(tree)
	if err := unix.Mount("tmpfs", real, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return nil, fmt.Errorf("copy up %s: mount tmpfs: %w", dir, err)
	}
	host := filepath.Join(real, hostView)
	if err := os.Mkdir(host, 0o755); err != nil {
		return nil, fmt.Errorf("copy up %s: %w", dir, err)
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, host, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return nil, fmt.Errorf("copy up %s: mount the original on %s: %w", dir, host, err)
	}
	up := &copiedDir{dir: real}
	return up, up.link(real)
}

// upFor returns the innermost copied-up directory that holds path, or nil.
func upFor(ups []*copiedDir, path string) *copiedDir {
	var best *copiedDir
	for _, up := range ups {
		if path == up.dir || strings.HasPrefix(path, up.dir+"/") {
			if best == nil || len(up.dir) > len(best.dir) {
				best = up
			}
		}
	}
	return best
}

// hostPath is where the original of path can be seen.
func (u *copiedDir) hostPath(path string) string {
	return filepath.Join(u.dir, hostView, strings.TrimPrefix(path, u.dir))
}

// makeReal makes path and its parents directories of the tmpfs, each filled
// with links to the host's entries. Idempotent.
func (u *copiedDir) makeReal(path string) error {
	if path == u.dir {
		return nil
	}
	if err := u.makeReal(filepath.Dir(path)); err != nil {
		return err
	}
	st, err := os.Lstat(path)
	switch {
	case err == nil && st.IsDir():
		return nil
	case err == nil:
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("replace the link %s by a directory: %w", path, err)
		}
	case !errors.Is(err, os.ErrNotExist):
		return err
	}
	if err := os.Mkdir(path, 0o755); err != nil {
		return err
	}
	return u.link(path)
}

// link fills the directory at path with links to the host's entries. A link
// keeps its own target, which holds from the same place; an unreadable or
// missing original leaves the directory empty.
func (u *copiedDir) link(path string) error {
	entries, err := os.ReadDir(u.hostPath(path))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("copy up %s: %w", path, err)
	}
	for _, e := range entries {
		original := filepath.Join(u.hostPath(path), e.Name())
		var target string
		if e.Type()&os.ModeSymlink != 0 {
			target, err = os.Readlink(original)
		} else {
			target, err = filepath.Rel(path, original)
		}
		if errors.Is(err, os.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return fmt.Errorf("copy up %s: %w", path, err)
		}
		// mount(8) and others may have been quicker (rootlesskit issue 45).
		if err := os.Symlink(target, filepath.Join(path, e.Name())); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("copy up %s: %w", path, err)
		}
	}
	return nil
}
