package storage

import (
	"archive/tar"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// linkTarget returns where the target of a hard link is in this layer. One of a lower
// layer is copied.
func (f *layerFilter) linkTarget(name string) (string, error) {
	target, err := f.place(cleanName(name), false)
	if err != nil {
		return "", err
	}
	switch f.seen[f.hash(target)] {
	case absent:
	case directory:
		return "", fmt.Errorf("archive/tar: a hard link to the directory %.200q", name)
	default:
		return target, nil
	}
	below, err := f.below(target)
	if err != nil {
		return "", err
	}
	switch {
	case f.inFile(target):
		return target, nil // through a link of this layer, or an error, which unpacking reports
	case below == nil:
		return "", fmt.Errorf("archive/tar: a hard link to %.200q, which neither the layer has so far nor one below it", name)
	case below.is(unix.S_IFDIR) || below.is(unix.S_IFCHR) || below.is(unix.S_IFBLK):
		return "", fmt.Errorf("archive/tar: a hard link to %.200q, which is a directory or a device in a lower layer", name)
	}
	if target, err = f.place(target, true); err != nil {
		return "", err
	}
	h, err := below.header(target)
	if err != nil {
		return "", err
	}
	var body io.Reader
	if h.Typeflag == tar.TypeReg {
		file, err := openBeneath(below.dir, below.name, unix.O_RDONLY)
		if err != nil {
			return "", err
		}
		defer file.Close()
		body = file
	}
	f.seen[f.hash(target)] = kindOf(h.Typeflag)
	return target, f.emit(h, body)
}
