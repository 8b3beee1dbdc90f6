package storage

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// pipeSize is the size of pipes that layers go through, in bytes: larger ones mean fewer
// switches between who writes and who reads.
const pipeSize = 1 << 20

// largePipe returns a pipe whose ends block their threads.
func largePipe() (r, w *os.File, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, os.NewSyscallError("pipe2", err)
	}
	_, _ = unix.FcntlInt(uintptr(p[0]), unix.F_SETPIPE_SZ, pipeSize)
	return os.NewFile(uintptr(p[0]), "filtered"), os.NewFile(uintptr(p[1]), "filter"), nil
}

// splice moves n bytes from a pipe to another: their pages, without a copy.
func splice(to, from *os.File, n int64) error {
	for n > 0 {
		moved, err := unix.Splice(int(from.Fd()), nil, int(to.Fd()), nil, int(min(n, pipeSize)), 0)
		switch {
		case err == unix.EINTR:
		case err == unix.EINVAL: // no pipe
			_, err := io.CopyN(to, from, n)
			return err
		case err != nil:
			return os.NewSyscallError("splice", err)
		case moved == 0:
			return io.ErrUnexpectedEOF
		}
		n -= max(moved, 0)
	}
	return nil
}

// passUnread writes the next size bytes, the body of an entry, mostly without reading them.
func (f *layerFilter) passUnread(size int64) error {
	n, err := io.CopyN(f.out, f.raw.r, min(size, int64(f.raw.r.Buffered())))
	if err == nil {
		err = f.out.Flush()
	}
	if err == nil {
		err = f.splice(size - n)
	}
	f.raw.passed = size
	return err
}
