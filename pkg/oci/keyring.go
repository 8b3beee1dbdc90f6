package oci

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/idmap"
)

// What runs in a container has a session keyring of its own: it would have that of the
// session that the daemon was started in otherwise, with the user's keys. A keyring counts
// against the quota of the user ID of the process that makes it (keyrings(7); 200 by
// default). So the thread that starts conmon or the runtime joins it as one of the node's
// other users, the user's subordinate IDs, each of which has a quota of its own. What it
// starts inherits it and is told to make none. The container has the keyring in its
// possession, whoever owns it.

// errKeyQuota means that no user of the node may have one more keyring.
var errKeyQuota = errors.New("no user ID of the node may have one more session keyring")

// keyringIDs is how many of the node's highest user IDs, which images hardly use, keyrings
// are made as.
const keyringIDs = 1024

// keyringOwners returns these IDs, then 0.
var keyringOwners = sync.OnceValue(func() (owners []uint32) {
	maps, err := idmap.Read("/proc/self/uid_map")
	if err == nil {
		for id := idmap.Last(maps); id > 0 && len(owners) < keyringIDs; id-- {
			if idmap.Covered(maps, id, 1) {
				owners = append(owners, id)
			}
		}
	}
	return append(owners, 0)
})

// keyringOwner is the number, in keyringOwners, of the one that has had room last.
var keyringOwner atomic.Uint32

// sharedKeyring logs, once, that a container has no keyring of its own.
func sharedKeyring(e *Executor, err error) {
	if err != nil && e.keyringShared.CompareAndSwap(false, true) {
		e.log.Warn("containers share the session keyring of the daemon; sysctl kernel.keys.maxkeys and kernel.keys.maxbytes raise the limit of each user ID, and subordinate IDs have limits of their own", "error", err)
	}
}

// joinKeyring gives the calling thread, which is of no other use then, a new session
// keyring. errKeyQuota. A kernel without keys is no error.
func joinKeyring() error {
	owners := keyringOwners()
	first := keyringOwner.Load()
	for i := range uint32(len(owners)) {
		at := (first + i) % uint32(len(owners))
		switch err := joinKeyringAs(owners[at]); {
		case err == nil:
			if i > 0 {
				keyringOwner.CompareAndSwap(first, at)
			}
			return nil
		case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EOPNOTSUPP):
			return nil
		case !errors.Is(err, unix.EDQUOT):
			return fmt.Errorf("make a session keyring as user %d: %w", owners[at], err)
		}
	}
	return errKeyQuota
}

// joinKeyringAs is joinKeyring with the keyring in the quota of a user ID of the node: the
// kernel goes by the real one, and the others leave the thread its capabilities.
func joinKeyringAs(uid uint32) error {
	const unchanged = ^uintptr(0)
	// For this thread: syscall.Setresuid changes all.
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), unchanged, unchanged); errno != 0 {
		return errno
	}
	_, err := unix.KeyctlInt(unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, 0, unchanged, unchanged); errno != 0 {
		return fmt.Errorf("become root again: %w", errno)
	}
	return err
}
