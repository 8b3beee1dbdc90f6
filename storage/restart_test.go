package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The server is killed; its containers' root file systems live on and are known
// to the next server.
func TestServerKilled(t *testing.T) {
	for _, driver := range []string{DriverFuse, DriverNative, DriverVFS} {
		t.Run(driver, func(t *testing.T) {
			ctx := context.Background()
			o := testOptions(t, t.TempDir(), driver)
			s := openStore(t, o)
			image := loadInto(t, s, "example.com/app:v1", sample(t, "one"))
			s.Close()
			id := containerID(7)
			path, kill := startChild(t, childOrder{Options: o, Rootfs: RootfsSpec{ID: id, ImageID: image}})
			writeFile(t, filepath.Join(path, "srv"), "before")
			if driver == DriverFuse {
				wantDetached(t, id)
			}
			kill()
			wantFile(t, filepath.Join(path, "srv"), "before", 0o644, 0, 0)
			writeFile(t, filepath.Join(path, "srv2"), "after")

			s = openStore(t, o)
			if err := s.Images.Remove(ctx, image); !errors.Is(err, ErrImageInUse) {
				t.Errorf("remove image in use: %v", err)
			}
			r, err := s.Rootfs.Mount(ctx, id)
			if err != nil || r.Path != path {
				t.Errorf("MountRootfs: %v %v, want %s", r, err, path)
			}
			if mounts := mountsBelow(t, o.Root); len(mounts) != 1 {
				t.Errorf("mounts %v, want one", mounts)
			}
			wantFile(t, filepath.Join(path, "srv2"), "after", 0o644, 0, 0)
			if err := s.Rootfs.Delete(ctx, id); err != nil {
				t.Error(err)
			}
			wantNoLeaks(t, o.Root)
		})
	}
}

// wantDetached checks that the fuse-overlayfs of a container is in a session of
// its own and holds nothing of the server's.
func wantDetached(t *testing.T, id string) {
	t.Helper()
	procs := processesNaming(id + "/upper")
	// The process that was started ends once the one in the background is there.
	for end := time.Now().Add(patience); len(procs) != 1 && time.Now().Before(end); procs = processesNaming(id + "/upper") {
		time.Sleep(time.Millisecond)
	}
	if len(procs) != 1 {
		t.Fatalf("processes of %s: %v", id, procs)
	}
	pid, _, _ := strings.Cut(procs[0], " ")
	stat := strings.Fields(mustRead(t, "/proc/"+pid+"/stat"))
	own := strings.Fields(mustRead(t, "/proc/self/stat"))
	if stat[5] == own[5] {
		t.Errorf("fuse-overlayfs is in our session %s", stat[5])
	}
	fds, err := filepath.Glob("/proc/" + pid + "/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	targets := map[string]int{}
	for _, fd := range fds {
		target, err := os.Readlink(fd)
		if errors.Is(err, os.ErrNotExist) {
			continue // it works meanwhile
		}
		if err != nil {
			t.Error(err)
		}
		targets[target]++
	}
	for target, n := range targets {
		// libfuse has a pipe of its own: both ends.
		ownPipe := strings.HasPrefix(target, "pipe:") && n == 2
		if !ownPipe && target != "/dev/null" && target != "/dev/fuse" && !strings.Contains(target, "/overlay/") && !strings.Contains(target, "/rootfs/"+id) {
			t.Errorf("fuse-overlayfs holds %s", target)
		}
	}
}

// fuse-overlayfs is killed, or the mount namespace is a new one: the root file
// system is mounted again, with what was written.
func TestMountLost(t *testing.T) {
	ctx := context.Background()
	s := openStore(t, testOptions(t, t.TempDir(), DriverFuse))
	image := loadInto(t, s, "example.com/app:v1", sample(t, "one"))
	id := containerID(3)
	r, err := s.Rootfs.Create(ctx, RootfsSpec{ID: id, ImageID: image})
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(r.Path, "srv"), "kept")
	for _, loss := range []string{"killed", "unmounted", "deleted after kill"} {
		if loss == "unmounted" {
			if err := unix.Unmount(r.Path, 0); err != nil {
				t.Fatal(err)
			}
		} else {
			for _, p := range processesNaming(id + "/upper") {
				pid, _, _ := strings.Cut(p, " ")
				var n int
				fmt.Sscan(pid, &n)
				if err := syscall.Kill(n, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
					t.Fatal(err)
				}
			}
			for deadline := time.Now().Add(patience); answers(r.Path) == nil; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("%s: the mount still answers; processes %q", loss, processesNaming(id))
				}
			}
		}
		if loss == "deleted after kill" {
			if err := s.Rootfs.Delete(ctx, id); err != nil {
				t.Errorf("%s: %v", loss, err)
			}
			break
		}
		if again, err := s.Rootfs.Mount(ctx, id); err != nil || again != r {
			t.Fatalf("%s: %v %v", loss, again, err)
		}
		wantFile(t, filepath.Join(r.Path, "srv"), "kept", 0o644, 0, 0)
		if mounts := mountsBelow(t, s.layers.opts.Root); len(mounts) != 1 {
			t.Errorf("%s: mounts %v", loss, mounts)
		}
	}
}

// Something still uses the root file system when it is deleted.
func TestDeleteBusy(t *testing.T) {
	for _, driver := range []string{DriverFuse, DriverNative} {
		ctx := context.Background()
		s := openStore(t, testOptions(t, t.TempDir(), driver))
		image := loadInto(t, s, "example.com/app:v1", sample(t, "one"))
		r, err := s.Rootfs.Create(ctx, RootfsSpec{ID: containerID(3), ImageID: image})
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(filepath.Join(r.Path, "etc/mark"))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Rootfs.Delete(ctx, containerID(3)); err != nil {
			t.Errorf("%s: %v", driver, err)
		}
		if mounts := mountsBelow(t, s.layers.opts.Root); len(mounts) > 0 {
			t.Errorf("%s: mounts %v", driver, mounts)
		}
		f.Close()
	}
}

// Many at once, as a node that starts thirty pods.
func TestRootfsConcurrent(t *testing.T) {
	ctx := context.Background()
	s := openStore(t, testOptions(t, t.TempDir(), DriverFuse))
	image := loadInto(t, s, "example.com/app:v1", sample(t, "one"))
	errs := make(chan error, 20)
	for i := range 20 {
		go func() {
			id := containerID(byte(i / 2)) // each twice: idempotent also at once
			_, err := s.Rootfs.Create(ctx, RootfsSpec{ID: id, ImageID: image})
			errs <- err
		}()
	}
	for range 20 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if mounts := mountsBelow(t, s.layers.opts.Root); len(mounts) != 10 {
		t.Errorf("%d mounts, want 10", len(mounts))
	}
}

// A half made tree, as after a kill, is made anew.
func TestRootfsHalfMade(t *testing.T) {
	ctx := context.Background()
	s := openStore(t, testOptions(t, t.TempDir(), DriverNative))
	image := loadInto(t, s, "example.com/app:v1", sample(t, "one"))
	for i, broken := range []string{"", "\x00\x00\x00", `{"image":`} {
		id := containerID(byte(i))
		if err := os.MkdirAll(filepath.Join(s.layers.dirs.rootfs(id), "upper"), 0o700); err != nil {
			t.Fatal(err)
		}
		if i > 0 {
			writeFile(t, filepath.Join(s.layers.dirs.rootfs(id), recordFile), broken)
		}
		r, err := s.Rootfs.Create(ctx, RootfsSpec{ID: id, ImageID: image})
		if err != nil {
			t.Fatal(err)
		}
		wantSample(t, r.Path, "one", 0)
	}
}
