package tree

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"slices"
	"syscall"
)

// Walk calls visit for what is at name below root, and for all below that, in the order of
// names, a directory before what is in it. Links are not followed, and what disappears
// meanwhile is left out. Unlike fs.WalkDir of root.FS, it knows names that are not UTF-8.
// It returns the first error, also of visit.
func Walk(root *os.Root, name string, visit func(name string, d fs.DirEntry) error) error {
	info, err := root.Lstat(name)
	if err != nil {
		return err
	}
	return walk(root, name, info, visit)
}

func walk(root *os.Root, name string, info fs.FileInfo, visit func(name string, d fs.DirEntry) error) error {
	if err := visit(name, fs.FileInfoToDirEntry(info)); err != nil || !info.IsDir() {
		return err
	}
	names, err := namesIn(root, name)
	if err != nil {
		return err
	}
	for _, n := range names {
		at := path.Join(name, n)
		info, err := root.Lstat(at)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = walk(root, at, info, visit)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func namesIn(root *os.Root, dir string) ([]string, error) {
	// A container may have made it something else meanwhile, such as a FIFO.
	f, err := root.OpenFile(dir, os.O_RDONLY|syscall.O_DIRECTORY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}
