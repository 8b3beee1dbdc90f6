package tree

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	// removeDepth is how deep directories are removed in place: each level takes a
	// descriptor.
	removeDepth = 64
	// removeBatch is how many names are read at a time.
	removeBatch = 1024
)

// RemoveAll removes path and what is below it, as os.RemoveAll does, but by a bounded
// number of descriptors: a stranger makes directories as deep as it likes, and os.RemoveAll
// opens one of each level. What is deeper than removeDepth is moved up, so that no path is
// too long either. Links are removed, not followed. Idempotent.
func RemoveAll(path string) error {
	err := os.Remove(path)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	top, openErr := openDir(unix.AT_FDCWD, path)
	if openErr != nil {
		return err
	}
	r := remover{top: top}
	clearErr := r.clear(top, 0)
	top.Close()
	if err = os.Remove(path); err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if clearErr != nil {
		return fmt.Errorf("remove %s: %w", path, clearErr)
	}
	return err
}

// remover is one run of RemoveAll.
type remover struct {
	top   *os.File
	moved int
}

func openDir(parent int, name string) (*os.File, error) {
	fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: filepath.Base(name), Err: err}
	}
	return os.NewFile(uintptr(fd), filepath.Base(name)), nil
}

// clear removes what is in a directory. It goes on after an error, and returns the first of
// what stays.
func (r *remover) clear(dir *os.File, depth int) error {
	for {
		if _, err := dir.Seek(0, io.SeekStart); err != nil {
			return err
		}
		moved := r.moved
		removed, err := r.pass(dir, depth)
		if !removed && (depth > 0 || r.moved == moved) {
			return err
		}
		// Again from the beginning: names may be left out while others are removed, and
		// deeper directories come to the top.
	}
}

// pass tries each name in a directory once, and reports whether one is gone.
func (r *remover) pass(dir *os.File, depth int) (removed bool, first error) {
	for {
		names, err := dir.Readdirnames(removeBatch)
		for _, name := range names {
			if err := r.remove(dir, name, depth); err == nil {
				removed = true
			} else if first == nil {
				first = err
			}
		}
		if errors.Is(err, io.EOF) {
			return removed, first
		}
		if err != nil {
			return removed, err
		}
	}
}

// remove takes a name out of a directory.
func (r *remover) remove(dir *os.File, name string, depth int) error {
	fd := int(dir.Fd())
	err := unix.Unlinkat(fd, name, 0)
	if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		if dirErr := unix.Unlinkat(fd, name, unix.AT_REMOVEDIR); !errors.Is(dirErr, unix.ENOTDIR) {
			err = dirErr
		}
	}
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) {
		if depth == removeDepth && r.moveUp(fd, name) {
			return nil
		}
		return r.directory(dir, name, depth)
	}
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return &fs.PathError{Op: "unlinkat", Path: name, Err: err}
}

// directory removes a directory that is not empty.
func (r *remover) directory(parent *os.File, name string, depth int) error {
	dir, err := openDir(int(parent.Fd()), name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	err = r.clear(dir, depth+1)
	dir.Close()
	if rmErr := unix.Unlinkat(int(parent.Fd()), name, unix.AT_REMOVEDIR); rmErr == nil || errors.Is(rmErr, unix.ENOENT) {
		return nil
	} else if err == nil {
		err = &fs.PathError{Op: "unlinkat", Path: name, Err: rmErr}
	}
	return err
}

// moveUp moves a directory to the top, under a name that nothing there has. It reports
// whether that was possible; then it is removed from there.
func (r *remover) moveUp(dir int, name string) bool {
	for {
		err := unix.Renameat2(dir, name, int(r.top.Fd()), fmt.Sprintf("removed-%d", r.moved), unix.RENAME_NOREPLACE)
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return false
		}
		r.moved++
		if err == nil {
			return true
		}
	}
}
