package storage

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestUsageThatTakesLong: a writable layer that cannot be measured in time, such as one with
// tens of millions of files, keeps nobody from what the others take, and is measured once at a
// time.
func TestUsageThatTakesLong(t *testing.T) {
	ctx := context.Background()
	s := openStore(t, testOptions(t, t.TempDir(), DriverVFS))
	img := sample(t, "one")
	loadInto(t, s, "example.com/one:v1", img)
	for n := range byte(2) {
		if _, err := s.Rootfs.Create(ctx, RootfsSpec{ID: containerID(n + 1), ImageID: img.id()}); err != nil {
			t.Fatal(err)
		}
		upper := filepath.Join(s.layers.dirs.rootfs(containerID(n+1)), "upper")
		if err := os.MkdirAll(filepath.Join(upper, "stuck"), 0o755); err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(upper, "written"), "by a container")
	}
	other, err := s.Rootfs.Usage(ctx, containerID(2))
	if err != nil {
		t.Fatal(err)
	}
	last, err := s.Rootfs.Usage(ctx, containerID(1))
	if err != nil {
		t.Fatal(err)
	}
	end := hang(t, filepath.Join(s.layers.dirs.rootfs(containerID(1)), "upper", "stuck"))
	for range 3 {
		ended, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		err := within(t, "the usage", func() error { _, err := s.Rootfs.Usage(ended, containerID(1)); return err })
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("usage: %v, want the end of the context", err)
		}
	}
	var info FSInfo
	if err := within(t, "FSInfo", func() (err error) { info, err = s.Images.FSInfo(ctx); return err }); err != nil {
		t.Fatal(err)
	}
	if want := (Usage{last.Bytes + other.Bytes, last.Inodes + other.Inodes}); info.Containers != want {
		t.Errorf("FSInfo has %+v, want what was last known, %+v", info.Containers, want)
	}
	end()
}

// TestUsageIsUsedAgain: what took long to measure is measured again after a multiple of that,
// and by one at a time.
func TestUsageIsUsedAgain(t *testing.T) {
	u := newUsages()
	defer u.stop()
	measured := 0
	measure := func(context.Context) (Usage, error) {
		measured++
		time.Sleep(2 * slowUsage)
		return Usage{Bytes: uint64(measured)}, nil
	}
	results := make(chan Usage, 8)
	for range cap(results) {
		go func() {
			usage, err := u.of(t.Context(), "c", measure)
			if err != nil {
				t.Error(err)
			}
			results <- usage
		}()
	}
	for range cap(results) {
		if usage := <-results; usage.Bytes != 1 {
			t.Errorf("%+v of measurement 1", usage)
		}
	}
	u.forget("c")
	if usage, err := u.of(t.Context(), "c", measure); err != nil || usage.Bytes != 2 {
		t.Errorf("of another one by that name: %+v, %v", usage, err)
	}
}

// TestUsagesAtATime: many writable layers that take long to measure do not take all of the
// server's descriptors, and are all measured.
func TestUsagesAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := newUsages()
		defer u.stop()
		running, most := 0, 0
		var mu sync.Mutex
		count := func(n int) {
			mu.Lock()
			defer mu.Unlock()
			running += n
			most = max(most, running)
		}
		var requests sync.WaitGroup
		for n := range 10 * maxMeasured {
			requests.Go(func() {
				_, err := u.of(t.Context(), containerID(byte(n)), func(context.Context) (Usage, error) {
					count(1)
					defer count(-1)
					time.Sleep(time.Minute)
					return Usage{}, nil
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		requests.Wait()
		if most != maxMeasured {
			t.Errorf("%d at a time, want %d", most, maxMeasured)
		}
	})
}

// TestUsageOfRemoved: nothing is kept of a root file system that is removed while somebody
// asks for its usage.
func TestUsageOfRemoved(t *testing.T) {
	s := openStore(t, testOptions(t, t.TempDir(), DriverVFS))
	dir := s.layers.dirs.rootfs(containerID(1))
	var asks sync.WaitGroup
	for range 100 {
		writeFile(t, filepath.Join(dir, "upper", "f"), "")
		gone := make(chan struct{})
		for range 2 {
			asks.Go(func() {
				for {
					_, _ = s.Rootfs.Usage(t.Context(), containerID(1))
					select {
					case <-gone:
						return
					default:
					}
				}
			})
		}
		if err := s.Rootfs.Delete(t.Context(), containerID(1)); err != nil {
			t.Fatal(err)
		}
		close(gone)
		asks.Wait()
		if n := len(s.layers.usages.known); n > 0 {
			t.Fatalf("%d are kept", n)
		}
	}
}
