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

// openReserve looks for the reserve of an earlier process, and makes one where there is none
// and the journal has not got it.
func openReserve(path string, size int64, j *journal) reserve {
	r := reserve{path: path, size: size}
	var st unix.Stat_t
	r.held = unix.Lstat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && st.Blocks*512 >= size
	if !r.fill() && size > 0 && unix.Fstat(int(j.file.Fd()), &st) == nil {
		if spare := st.Blocks*512 - j.size; spare > 2*4096 {
			j.given = j.size + spare/2
		}
	}
	return r
}

// fill makes the file where it is missing, and reports whether it is there. Best effort: on a
// full disk the next round of the committer tries again.
func (r *reserve) fill() bool {
	if r.held || r.size == 0 {
		return r.held
	}
	// What stands there and is not a whole reserve goes: a FIFO would be waited for.
	_ = os.Remove(r.path)
	f, err := os.OpenFile(r.path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return false
	}
	defer f.Close()
	err = allocate(f, 0, 0, r.size)
	if errors.Is(err, unix.EOPNOTSUPP) {
		_, err = f.Write(make([]byte, r.size))
	}
	if r.held = err == nil; !r.held {
		_ = os.Remove(r.path)
	}
	return r.held
}

// giveTo gives the space to a journal, behind its entries, so that nobody else takes it. It
// reports whether there was any.
func (r *reserve) giveTo(j *journal) bool {
	if !r.held {
		return false
	}
	r.held = false
	if os.Remove(r.path) != nil {
		return false
	}
	for part := r.size; part >= 4096; part /= 2 { // the rest is taken already
		err := allocate(j.file, unix.FALLOC_FL_KEEP_SIZE, j.size, part)
		if err == nil {
			j.given = j.size + part/2
		}
		if !isFull(err) {
			break
		}
	}
	return true
}

// allocate is fallocate(2).
func allocate(f *os.File, mode uint32, from, size int64) error {
	for {
		if err := unix.Fallocate(int(f.Fd()), mode, from, size); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// isFull reports whether an error comes of a full disk.
func isFull(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }
