package tree

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// TestNamesInFIFO: a directory that has become a FIFO since it was looked at is not waited
// for.
func TestNamesInFIFO(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	done := make(chan error, 1)
	go func() {
		_, err := namesIn(root, "fifo")
		done <- err
	}()
	select {
	case err := <-done:
		if !errors.Is(err, syscall.ENOTDIR) {
			t.Errorf("got %v, want ENOTDIR", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("it waits for somebody to write")
	}
}
