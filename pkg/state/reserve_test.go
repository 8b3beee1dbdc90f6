package state

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestReserveInTheWay: what stands at the reserve's path and is no file is neither waited
// for nor followed.
func TestReserveInTheWay(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside")
	for what, put := range map[string]func(path string) error{
		"FIFO": func(path string) error { return unix.Mkfifo(path, 0o600) },
		"link": func(path string) error { return os.Symlink(outside, path) },
	} {
		t.Run(what, func(t *testing.T) {
			r := reserve{path: filepath.Join(t.TempDir(), "reserve"), size: 1 << 20}
			if err := put(r.path); err != nil {
				t.Fatal(err)
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				r.fill()
			}()
			select {
			case <-done:
			case <-time.After(time.Minute):
				t.Fatal("it is waited for")
			}
			if _, err := os.Lstat(outside); !os.IsNotExist(err) {
				t.Errorf("outside: %v", err)
			}
			if !r.fill() {
				t.Error("there is no reserve afterwards")
			}
		})
	}
}
