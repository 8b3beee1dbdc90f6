package volumes_test

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// fewFiles lets the process open no more than a few files until the test ends.
func fewFiles(t *testing.T, n uint64) {
	t.Helper()
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &old) })
}

// dig makes directories in each other, more than a path can name.
func dig(t *testing.T, dir string, depth int) {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	for i := 0; i < depth && err == nil; i++ {
		var next int
		if err = unix.Mkdirat(fd, "d", 0o755); err == nil {
			next, err = unix.Openat(fd, "d", unix.O_PATH|unix.O_DIRECTORY, 0)
			unix.Close(fd)
			fd = next
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
}

// TestRemoveDeep: a container has made directories in each other, more than the server may
// have files open. The volume can be removed all the same.
func TestRemoveDeep(t *testing.T) {
	s := store(t)
	v, err := s.Create("deep", nil)
	if err != nil {
		t.Fatal(err)
	}
	dig(t, v.Path, 3000)
	if err := os.WriteFile(filepath.Join(v.Path, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	fewFiles(t, 400)
	if err := s.Remove("deep"); err != nil {
		t.Errorf("remove: %.300v", err)
	}
	if _, err := os.Lstat(v.Path); err == nil {
		t.Error("the volume is there")
	}
}
