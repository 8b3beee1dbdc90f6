package cgroup

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRemoveDeepTree removes cgroups that a privileged container has made: deeper than a
// path may be long and than a process may have files open, and many beside each other.
// Directories of any file system will do: rmdir removes what is empty in both.
func TestRemoveDeepTree(t *testing.T) {
	top := filepath.Join(t.TempDir(), "container")
	check(t, os.Mkdir(top, 0o700))
	for i := range 3 {
		check(t, os.MkdirAll(filepath.Join(top, strconv.Itoa(i), "a", "b"), 0o700))
	}
	dir, err := os.Open(top)
	check(t, err)
	for range 3000 {
		name := strings.Repeat("x", 255)
		check(t, unix.Mkdirat(int(dir.Fd()), name, 0o700))
		fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		check(t, err)
		check(t, dir.Close())
		dir = os.NewFile(uintptr(fd), name)
	}
	check(t, dir.Close())
	check(t, removeTree(t.Context(), top))
	if _, err := os.Lstat(top); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("still there: %v", err)
	}
	check(t, removeTree(t.Context(), top))
}
