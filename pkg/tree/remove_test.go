package tree

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestRemoveAll: what a stranger has filled is removed, however deep it is, by few
// descriptors; what its links lead to is not.
func TestRemoveAll(t *testing.T) {
	outside := t.TempDir()
	write(t, filepath.Join(outside, "file"), "outside")
	dir := filepath.Join(t.TempDir(), "dir")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	for i := 0; i < 3000 && err == nil; i++ {
		var next int
		if i%500 == 0 {
			_ = unix.Symlinkat(outside, fd, "link")
			_ = unix.Mkdirat(fd, fmt.Sprint("empty", i), 0o700)
			_ = unix.Mknodat(fd, "fifo", unix.S_IFIFO|0o600, 0)
			_ = unix.Mkdirat(fd, "removed-0", 0o700) // a name that the removal may give
		}
		if err = unix.Mkdirat(fd, "d", 0o700); err == nil {
			next, err = unix.Openat(fd, "d", unix.O_PATH|unix.O_DIRECTORY, 0)
			unix.Close(fd)
			fd = next
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	for i := range 3000 { // more than are read at a time
		write(t, filepath.Join(dir, "many", fmt.Sprint(i)), "")
	}
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 400, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &old) }()
	for range 2 { // the second time there is nothing
		if err := RemoveAll(dir); err != nil {
			t.Fatalf("%.300v", err)
		}
	}
	if _, err := os.Lstat(dir); err == nil {
		t.Error("it is there")
	}
	link, file := filepath.Join(outside, "link"), filepath.Join(outside, "plain")
	if err := os.Symlink(outside, link); err != nil {
		t.Fatal(err)
	}
	write(t, file, "")
	for _, name := range []string{link, file} {
		if err := RemoveAll(name); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(name); err == nil {
			t.Errorf("%s is there", name)
		}
	}
	if got := read(t, filepath.Join(outside, "file")); got != "outside" {
		t.Errorf("a file that links lead to: %q", got)
	}
	if err := os.Mkdir(filepath.Join(outside, "closed"), 0o500); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() != 0 {
		_ = os.Chmod(filepath.Join(outside, "closed"), 0o700)
		write(t, filepath.Join(outside, "closed", "file"), "")
		_ = os.Chmod(filepath.Join(outside, "closed"), 0o500)
		if err := RemoveAll(filepath.Join(outside, "closed")); !errors.Is(err, os.ErrPermission) {
			t.Errorf("a directory that is closed: %v", err)
		}
		_ = os.Chmod(filepath.Join(outside, "closed"), 0o700)
	}
}

// TestRemoveAllOfClosed: what is deep and cannot be removed is an error, and no reason to try
// for ever.
func TestRemoveAllOfClosed(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root removes it")
	}
	dir := filepath.Join(t.TempDir(), "dir")
	closed := filepath.Join(dir, strings.Repeat("d/", removeDepth), "full")
	write(t, filepath.Join(closed, "file"), "")
	if err := os.Chmod(closed, 0o500); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.Chmod(closed, 0o700) }()
	done := make(chan error, 1)
	go func() { done <- RemoveAll(dir) }()
	select {
	case err := <-done:
		if !errors.Is(err, os.ErrPermission) {
			t.Errorf("it ended by %v", err)
		}
	case <-time.After(time.Minute):
		t.Error("it goes on")
	}
}
