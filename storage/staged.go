package storage

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/tree"
)

// removeStaged removes what content processes that were killed have left of layers that
// they pulled in part. A live one has locked its directory; the kernel frees the lock of
// a dead one.
func removeStaged(l *layerStore) error {
	dirs, err := os.ReadDir(l.dirs.staging())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, d := range dirs {
		dir := filepath.Join(l.dirs.staging(), d.Name())
		lock, openErr := os.OpenFile(filepath.Join(dir, "staging.lock"), os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
		if openErr != nil {
			continue // it is being made, or removed
		}
		whole := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
		if unix.FcntlFlock(lock.Fd(), unix.F_OFD_SETLK, &whole) == nil {
			err = errors.Join(err, tree.RemoveAll(dir))
		}
		lock.Close()
	}
	return err
}
