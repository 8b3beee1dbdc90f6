package storage

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// reserveSize is the space set aside for removals, in bytes. The lists that
// containers/storage writes are about 1 KiB for each layer and image.
const reserveSize = 2 << 20

// reserve is a file that takes space on the store's disk. containers/storage writes its
// lists anew before it deletes anything, and does not recover from a list that did not
// fit: on a full disk no image could be removed, and the store not be opened.
type reserve struct{ path string }

// use runs do, with the space of the reserve where the disk is nearly full.
func (r reserve) use(do func() error) error {
	var st unix.Statfs_t
	if err := unix.Statfs(r.path, &st); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	} else if err == nil && (int64(st.Bavail)*st.Bsize < reserveSize || st.Files > 0 && st.Ffree < 16) {
		_ = os.Remove(r.path)
	}
	err := do()
	r.fill()
	return err
}

// fill makes the file where it is missing. Best effort: on a full disk the next use
// tries again.
func (r reserve) fill() {
	if exists(r.path) {
		return
	}
	f, err := os.OpenFile(r.path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	err = unix.Fallocate(int(f.Fd()), 0, 0, reserveSize)
	if errors.Is(err, unix.EOPNOTSUPP) {
		_, err = f.Write(make([]byte, reserveSize))
	}
	if err != nil {
		_ = os.Remove(r.path)
	}
}
