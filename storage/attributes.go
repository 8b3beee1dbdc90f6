package storage

import (
	"archive/tar"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// manyAttributes is the size of a file's extended attributes, in bytes, from which on a file
// system may have no room for them: ext4 has one block for a file.
const manyAttributes = 2048

// attributesRefused is the text of the error of attributesFit, by which it is known again.
const attributesRefused = "extended attributes, which the file system of the image store cannot hold"

// attributesFit returns an error where the file system of dir cannot hold the extended
// attributes of an entry. It reports that as a full disk when they are set, which no pruning
// of images cures.
func attributesFit(dir *os.File, h *tar.Header) error {
	size := 0
	for key, value := range h.PAXRecords {
		if strings.HasPrefix(key, paxXattr) {
			size += len(key) - len(paxXattr) + len(value)
		}
	}
	if size < manyAttributes {
		return nil
	}
	fd, err := unix.Openat(int(dir.Fd()), ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil // unpacking reports what is wrong
	}
	defer unix.Close(fd)
	for key, value := range h.PAXRecords {
		attr, ok := strings.CutPrefix(key, paxXattr)
		if !ok {
			continue
		}
		switch err := unix.Fsetxattr(fd, attr, []byte(value), 0); {
		case errors.Is(err, unix.E2BIG), errors.Is(err, unix.ENOSPC) && hasRoom(fd):
			return fmt.Errorf("it has %d bytes of %s: %w", size, attributesRefused, err)
		}
	}
	return nil
}

// hasRoom reports whether the file system of a file has space.
func hasRoom(fd int) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(fd, &st) == nil && int64(st.Bavail)*st.Bsize >= reserveSize
}
