package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// hang mounts a file system on dir that never answers, and returns the function that
// ends it.
func hang(t *testing.T, dir string) (end func()) {
	t.Helper()
	device, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=%o,user_id=0,group_id=0", device.Fd(), unix.S_IFDIR)
	if err := unix.Mount("hang", dir, "fuse.hang", 0, options); err != nil {
		t.Fatal(err)
	}
	end = func() {
		device.Close()
		_ = unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH)
	}
	t.Cleanup(end)
	return end
}

// TestHungCopyHoldsNobodyUp: while the copy of an image does not end, other root file
// systems are made, also of that image, and other images are tagged and removed.
func TestHungCopyHoldsNobodyUp(t *testing.T) {
	ctx := context.Background()
	s := openStore(t, testOptions(t, t.TempDir(), DriverVFS))
	big, other := sample(t, "big"), sample(t, "other")
	loadInto(t, s, "example.com/big:v1", big)
	loadInto(t, s, "example.com/other:v1", other)
	layers, err := s.layers.chain(big.id())
	if err != nil {
		t.Fatal(err)
	}
	blocker := filepath.Join(s.layers.diffDir(layers[0]), "blocker")
	if err := os.Mkdir(blocker, 0o755); err != nil {
		t.Fatal(err)
	}
	end := hang(t, blocker)
	created := make(chan error, 1)
	go func() {
		_, err := s.Rootfs.Create(ctx, RootfsSpec{ID: containerID(1), ImageID: big.id()})
		created <- err
	}()
	for start := time.Now(); !exists(filepath.Join(s.layers.dirs.rootfs(containerID(1)), recordFile)); time.Sleep(time.Millisecond) {
		if time.Since(start) > patience {
			t.Fatal("no copy has begun")
		}
	}
	for _, step := range []struct {
		what string
		do   func() error
		want error
	}{
		{"a tag", func() error { return s.Images.Tag(ctx, other.id(), "example.com/other:v2") }, nil},
		{"a removal of the image", func() error { return s.Images.Remove(ctx, big.id()) }, ErrImageInUse},
		{"a root file system", func() error {
			_, err := s.Rootfs.Create(ctx, RootfsSpec{ID: containerID(2), ImageID: other.id()})
			return err
		}, nil},
		{"its deletion", func() error { return s.Rootfs.Delete(ctx, containerID(2)) }, nil},
		{"a removal", func() error { return s.Images.Remove(ctx, other.id()) }, nil},
		{"another step on the same container", func() error {
			ended, cancel := context.WithCancel(ctx)
			cancel()
			return s.Rootfs.Delete(ended, containerID(1))
		}, context.Canceled},
	} {
		if err := within(t, step.what, step.do); !errors.Is(err, step.want) {
			t.Errorf("%s: %v, want %v", step.what, err, step.want)
		}
	}
	select {
	case err := <-created:
		t.Errorf("the copy has ended: %v", err)
	default:
	}
	end()
	_ = receive(t, "the copy", created) // whether it fails depends on where it hung
	if err := s.Rootfs.Delete(ctx, containerID(1)); err != nil {
		t.Error(err)
	}
	if err := s.Images.Remove(ctx, big.id()); err != nil {
		t.Error(err)
	}
}

// TestHungMount: a root file system whose fuse-overlayfs does not answer does not keep a
// request that has ended, nor its own deletion.
func TestHungMount(t *testing.T) {
	ctx := context.Background()
	s := openStore(t, testOptions(t, t.TempDir(), DriverFuse))
	img := sample(t, "hung")
	loadInto(t, s, "example.com/hung:v1", img)
	m, err := s.Rootfs.Create(ctx, RootfsSpec{ID: containerID(1), ImageID: img.id()})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range processesNaming(containerID(1)) {
		pid, err := strconv.Atoi(strings.Fields(p)[0])
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		defer unix.Kill(pid, unix.SIGKILL)
	}
	ended, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	err = within(t, "a mount", func() error { _, err := s.Rootfs.Mount(ended, m.ID); return err })
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("mount: %v, want the end of the context", err)
	}
	if err := within(t, "the deletion", func() error { return s.Rootfs.Delete(ctx, m.ID) }); err != nil {
		t.Error(err)
	}
}
