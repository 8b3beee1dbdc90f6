package volumes

import (
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMergeStaysInVolume: a container that exchanges a directory of its volume for a link
// while something is imported does not have it written where the link leads.
func TestMergeStaysInVolume(t *testing.T) {
	top := t.TempDir()
	volume, outside, link := filepath.Join(top, "volume"), filepath.Join(top, "outside"), filepath.Join(top, "link")
	dir := filepath.Join(volume, "d")
	for _, d := range []string{dir, outside} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(outside, link); err != nil {
		t.Fatal(err)
	}
	var stop atomic.Bool
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for !stop.Load() {
			_ = unix.Renameat2(unix.AT_FDCWD, link, unix.AT_FDCWD, dir, unix.RENAME_EXCHANGE)
		}
	}()
	// The other thread may not run for as long as so many tries take.
	merged, deadline := 0, time.Now().Add(time.Minute)
	for i := 0; i < 300 || merged == 0 && time.Now().Before(deadline); i++ {
		from := filepath.Join(top, "from")
		if err := os.MkdirAll(filepath.Join(from, "d"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(from, "d", "f"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if merge(from, volume) == nil {
			merged++
		}
		if left, _ := os.ReadDir(outside); len(left) > 0 {
			t.Errorf("outside there is %v", left)
			break
		}
		if err := os.RemoveAll(from); err != nil {
			t.Fatal(err)
		}
	}
	stop.Store(true)
	<-ended
	if merged == 0 && !t.Failed() {
		t.Error("nothing was merged at all")
	}
}

// TestFillRemoved: a volume that is removed while others fill it is there for them, or makes
// no trouble.
func TestFillRemoved(t *testing.T) {
	s := &Store{Dir: filepath.Join(t.TempDir(), "volumes")}
	var stop atomic.Bool
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for !stop.Load() {
			_ = s.Remove("v")
		}
	}()
	for range 200 {
		err := s.Fill("v", func(dir string) error {
			if err := os.Mkdir(dir, 0o755); err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(dir, "f"), nil, 0o600)
		})
		if err != nil {
			t.Error(err)
			break
		}
	}
	stop.Store(true)
	<-ended
}
