package storage

import (
	"errors"
	"os"
	"strings"
)

// containers/storage unpacks a layer in a directory that it protects from other processes
// by a locked file beside it. Between making that file and locking it, another process that
// looks for stale ones can lock it first, and remove it: then the lock is of a file that
// is no more, and the next process that looks removes the directory while the layer is
// unpacked there. So a layer is not unpacked under such a lock.

// errStagingUnlocked means that the layer has to be unpacked once more.
var errStagingUnlocked = errors.New("the directory of the layer is not locked: try again")

// unlockedLine stands for errStagingUnlocked in the list of the layers below.
const unlockedLine = "unlocked"

// stagingLocks is in the paths of the locked files.
const stagingLocks = "/tempdirs/lock-"

// stagingUnlocked reports whether this process holds the lock of a file that is no more.
// It is true for a moment as well when another layer of the process is done.
func stagingUnlocked() bool {
	fds, _ := os.ReadDir("/proc/self/fd")
	for _, fd := range fds {
		link, err := os.Readlink("/proc/self/fd/" + fd.Name())
		if err == nil && strings.Contains(link, stagingLocks) && strings.HasSuffix(link, " (deleted)") {
			return true
		}
	}
	return false
}

// unpackedUnlocked reports whether err is errStagingUnlocked, as the library passes it on.
func unpackedUnlocked(err error) bool {
	return strings.Contains(err.Error(), errStagingUnlocked.Error())
}
