package subpath

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// AttachShared is Attach for a mount that containers share: of path, on a place in dir
// that stays, so that what one container mounts below it reaches the next, also of two
// that come at once. Where another file has taken the path since, the mount is made
// anew. Calls of one process may run at the same time.
func AttachShared(dir, path string, tree *os.File) (string, error) {
	sum := sha256.Sum256([]byte(path))
	target := filepath.Join(dir, hex.EncodeToString(sum[:8]))
	var want, have unix.Stat_t
	if err := unix.Fstat(int(tree.Fd()), &want); err != nil {
		return "", err
	}
	defer shared.lock(target)()
	err := unix.Lstat(target, &have)
	if err == nil && have.Dev == want.Dev && have.Ino == want.Ino {
		return target, nil
	}
	if err == nil {
		// Containers keep the mount that they have.
		if err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			return "", fmt.Errorf("unmount %s: %w", target, err)
		}
		if err := os.Remove(target); err != nil {
			return "", err
		}
	}
	return Attach(dir, filepath.Base(target), tree)
}

// shared locks the targets of AttachShared, each by itself: the host's file system that
// one is mounted of may hang.
var shared = targetLocks{users: map[string]*targetLock{}}

type targetLocks struct {
	mu    sync.Mutex
	users map[string]*targetLock
}

type targetLock struct {
	sync.Mutex
	users int // that have or want it
}

func (l *targetLocks) lock(target string) (unlock func()) {
	l.mu.Lock()
	t := l.users[target]
	if t == nil {
		t = &targetLock{}
		l.users[target] = t
	}
	t.users++
	l.mu.Unlock()
	t.Lock()
	return func() {
		t.Unlock()
		l.mu.Lock()
		defer l.mu.Unlock()
		if t.users--; t.users == 0 {
			delete(l.users, target)
		}
	}
}
