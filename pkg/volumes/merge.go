package volumes

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// maxDepth bounds how deep directories are merged: each level takes two descriptors.
const maxDepth = 250

// merge moves what is in the directory from to the volume into, directories that both have
// by their content, or moves nothing where one has a directory and the other something
// else. It takes no room on the disk. A container may change the volume meanwhile: what is
// in it is found by descriptors, and through no link.
func merge(from, into string) error {
	src, err := openDir(nil, from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := openDir(nil, into)
	if err != nil {
		return err
	}
	defer dst.Close()
	if err := together(src, dst, maxDepth, conflict); err != nil {
		return err
	}
	return together(src, dst, maxDepth, move)
}

// openDir opens a directory, and nothing else, by its name in another one or by its path.
func openDir(in *os.File, name string) (*os.File, error) {
	at, path := unix.AT_FDCWD, name
	if in != nil {
		at, path = int(in.Fd()), filepath.Join(in.Name(), name)
	}
	fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// together calls do for what is in from and no directory in both; have says why it can't be
// opened as a directory in into, nil where it can.
func together(from, into *os.File, depth int, do func(from, into *os.File, e fs.DirEntry, have error) error) error {
	if depth == 0 {
		return fmt.Errorf("directories lie more than %d deep", maxDepth)
	}
	if _, err := from.Seek(0, 0); err != nil {
		return err
	}
	entries, err := from.ReadDir(-1)
	if err != nil {
		return err
	}
	for _, e := range entries {
		dst, have := openDir(into, e.Name())
		if have != nil || !e.IsDir() {
			err = do(from, into, e, have)
		} else {
			var src *os.File
			if src, err = openDir(from, e.Name()); err == nil {
				err = together(src, dst, depth-1, do)
				src.Close()
			}
		}
		if dst != nil {
			dst.Close()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func conflict(_, _ *os.File, e fs.DirEntry, have error) error {
	switch {
	case errors.Is(have, unix.ENOENT), errors.Is(have, unix.ENOTDIR) && !e.IsDir():
		return nil
	case errors.Is(have, unix.ENOTDIR), have == nil:
		return fmt.Errorf("%s is a directory in one, and none in the other", e.Name())
	}
	return have
}

func move(from, into *os.File, e fs.DirEntry, _ error) error {
	if err := unix.Renameat(int(from.Fd()), e.Name(), int(into.Fd()), e.Name()); err != nil {
		return &os.LinkError{Op: "rename", Old: filepath.Join(from.Name(), e.Name()), New: filepath.Join(into.Name(), e.Name()), Err: err}
	}
	return nil
}
