package state

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// reserve is a file that takes space on the journal's disk. What is stored already can be
// changed and deleted on a full disk with the space that it gives up: a container that has
// filled the disk could not be stopped otherwise, since its exit code could not be stored.
type reserve struct {
	path string
	size int64 // in bytes; 0 is none
	held bool  // the file is there, with its space
}

// openReserve looks for the reserve of an earlier process, and makes one where there is none.
func openReserve(path string, size int64) reserve {
	r := reserve{path: path, size: size}
	var st unix.Stat_t
	r.held = unix.Lstat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && st.Blocks*512 >= size
	r.fill()
	return r
}

// fill makes the file where it is missing. Best effort: on a full disk the next round of
// the committer tries again.
func (r *reserve) fill() {
	if r.held || r.size == 0 {
		return
	}
	f, err := os.OpenFile(r.path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	if r.held = unix.Fallocate(int(f.Fd()), 0, 0, r.size) == nil; !r.held {
		_ = os.Remove(r.path)
	}
}

// giveTo gives the space to a file, behind its first size bytes, so that nobody else takes
// it. It reports whether there was any.
func (r *reserve) giveTo(f *os.File, size int64) bool {
	if !r.held {
		return false
	}
	r.held = false
	if os.Remove(r.path) != nil {
		return false
	}
	for part := r.size; part >= 4096; part /= 2 { // the rest is taken already
		if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, size, part); !isFull(err) {
			break
		}
	}
	return true
}

// isFull reports whether an error comes of a full disk.
func isFull(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }
