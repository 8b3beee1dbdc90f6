package storage

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// spareStore opens a store that keeps spares, with and without a directory for its mounts,
// and loads an image.
func spareStore(t *testing.T, mountDir bool, change func(*Options)) (*Store, string) {
	t.Helper()
	o := testOptions(t, t.TempDir(), DriverFuse)
	o.Spares = 1
	if mountDir {
		o.MountDir = filepath.Join(t.TempDir(), "mounts")
	}
	if change != nil {
		change(&o)
	}
	s := openStore(t, o)
	return s, loadInto(t, s, "example.com/spare:v1", build(t, imageSpec{layers: []layer{{"etc/mark": {content: "m"}, "bin/sh": {content: "#!"}}}}))
}

// spareOf waits until there is a spare of the image, and returns its directory.
func spareOf(t *testing.T, s *Store, image string) (dir string) {
	t.Helper()
	until(t, "there is a spare", func() bool {
		s.layers.spares.mu.Lock()
		defer s.layers.spares.mu.Unlock()
		dir = s.layers.spares.ready[image]
		return dir != ""
	})
	return dir
}

func until(t *testing.T, what string, reached func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !reached(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not reached: %s", what)
		}
	}
}

func mustCreate(t *testing.T, s *Store, id, image string) Mounted {
	t.Helper()
	m, err := s.Rootfs.Create(context.Background(), RootfsSpec{ID: id, ImageID: image})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// A spare is as good as a root file system that is made when it is asked for, and has
// nothing of another container's.
func TestSpareIsHandedOut(t *testing.T) {
	for _, mountDir := range []bool{false, true} {
		t.Run(map[bool]string{false: "below the root", true: "in a directory of mounts"}[mountDir], func(t *testing.T) {
			s, image := spareStore(t, mountDir, nil)
			first := mustCreate(t, s, containerID(1), image)
			writeFile(t, filepath.Join(first.Path, "etc/first"), "of the first")
			spare := spareOf(t, s, image)
			second := mustCreate(t, s, containerID(2), image)
			if exists(spare) {
				t.Error("the spare is there still")
			}
			if left := mountsBelow(t, s.Rootfs.mountPoint(spare)); len(left) > 0 {
				t.Errorf("it is mounted in its old place still: %v", left)
			}
			if want := s.Rootfs.mountPoint(s.layers.dirs.rootfs(containerID(2))); second.Path != want {
				t.Errorf("mounted on %s, want %s", second.Path, want)
			}
			wantFile(t, filepath.Join(second.Path, "etc/mark"), "m", 0o644, 0, 0)
			if exists(filepath.Join(second.Path, "etc/first")) {
				t.Error("the second container has a file of the first")
			}
			writeFile(t, filepath.Join(second.Path, "etc/second"), "of the second")
			wantFile(t, filepath.Join(s.layers.dirs.rootfs(containerID(2)), "upper/etc/second"), "of the second", 0o644, 0, 0)
			if next := spareOf(t, s, image); next == spare {
				t.Error("the same spare is kept for the next container")
			}
			// Mounted again, it is what it was.
			ctx := context.Background()
			if err := s.Rootfs.Unmount(ctx, containerID(2)); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Rootfs.Mount(ctx, containerID(2)); err != nil {
				t.Fatal(err)
			}
			wantFile(t, filepath.Join(second.Path, "etc/second"), "of the second", 0o644, 0, 0)
			wantFile(t, filepath.Join(second.Path, "etc/mark"), "m", 0o644, 0, 0)
		})
	}
}

// A spare doesn't keep its image from being removed, and goes before it.
func TestSpareGoesWithItsImage(t *testing.T) {
	s, image := spareStore(t, true, nil)
	ctx := context.Background()
	for i := range 5 { // with the spare ready, being made, and not begun
		mustCreate(t, s, containerID(1), image)
		if err := s.Rootfs.Delete(ctx, containerID(1)); err != nil {
			t.Fatal(err)
		}
		switch i % 3 {
		case 0:
			spareOf(t, s, image)
		case 1:
			time.Sleep(spareDelay)
		}
		if err := s.Images.Remove(ctx, image); err != nil {
			t.Fatal(err)
		}
		if mounts := mountsBelow(t, s.layers.opts.MountDir); len(mounts) > 0 {
			t.Errorf("mounts without an image: %v", mounts)
		}
		if ids, err := listIDs(s.layers.dirs.spare("")); err == nil && len(ids) > 0 {
			t.Errorf("spares without an image: %v", ids)
		}
		loadInto(t, s, "example.com/spare:v1", build(t, imageSpec{layers: []layer{{"etc/mark": {content: "m"}, "bin/sh": {content: "#!"}}}}))
	}
}

// A spare whose program was killed is nobody's root file system.
func TestDeadSpareIsNotUsed(t *testing.T) {
	for name, end := range map[string]func(t *testing.T, spare, mount string){
		"unmounted": func(t *testing.T, _, mount string) {
			if err := unix.Unmount(mount, unix.MNT_FORCE); err != nil {
				t.Fatal(err)
			}
		},
		"killed": func(t *testing.T, spare, mount string) {
			for _, pid := range pidsNaming(filepath.Base(spare)) {
				if err := unix.Kill(pid, unix.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
			until(t, "the mount is dead", func() bool { return answers(mount) != nil })
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, image := spareStore(t, true, nil)
			mustCreate(t, s, containerID(1), image)
			spare := spareOf(t, s, image)
			end(t, spare, s.Rootfs.mountPoint(spare))
			m := mustCreate(t, s, containerID(2), image)
			wantFile(t, filepath.Join(m.Path, "etc/mark"), "m", 0o644, 0, 0)
			if exists(spare) {
				t.Error("the dead spare is there still")
			}
		})
	}
}

// pidsNaming returns the processes that have a word in their arguments.
func pidsNaming(word string) (pids []int) {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		if data, err := os.ReadFile(file); err == nil && strings.Contains(string(data), word) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			pids = append(pids, pid)
		}
	}
	return pids
}

// Spares are kept of the images used last, and of none that is not used.
func TestSparesAreBounded(t *testing.T) {
	s, first := spareStore(t, false, nil)
	mustCreate(t, s, containerID(1), first)
	spareOf(t, s, first)
	second := loadInto(t, s, "example.com/other:v1", build(t, imageSpec{layers: []layer{{"etc/mark": {content: "other"}}}}))
	mustCreate(t, s, containerID(2), second)
	spareOf(t, s, second)
	until(t, "that of the image used first is dropped", func() bool {
		ids, err := listIDs(s.layers.dirs.spare(""))
		return err == nil && len(ids) == 1
	})
	s.layers.spares.mu.Lock()
	s.layers.spares.idle = time.Millisecond
	s.layers.spares.poke()
	s.layers.spares.mu.Unlock()
	until(t, "an idle store keeps none", func() bool {
		ids, err := listIDs(s.layers.dirs.spare(""))
		return err == nil && len(ids) == 0
	})
}

// What a killed server left of its spares is removed when the store is opened: one that is
// ready, one that is half made, and the mount of one that had become a container's.
func TestSparesOfAKilledServer(t *testing.T) {
	o := testOptions(t, t.TempDir(), DriverFuse)
	o.Spares, o.MountDir = 1, filepath.Join(t.TempDir(), "mounts")
	s := openStore(t, o)
	image := loadInto(t, s, "example.com/spare:v1", build(t, imageSpec{layers: []layer{{"etc/mark": {content: "m"}}}}))
	ready, err := s.layers.spares.make(context.Background(), image)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(s.layers.dirs.spare("half"), recordFile), `{"image":"`+image+`"}`)
	adopted, err := s.layers.spares.make(context.Background(), image)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Rename(adopted, s.layers.dirs.rootfs(containerID(3))); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, o)
	if ids, err := listIDs(s.layers.dirs.spare("")); err != nil || len(ids) > 0 {
		t.Errorf("left: %v, %v", ids, err)
	}
	mounts := mountsBelow(t, o.MountDir)
	if i := slices.IndexFunc(mounts, func(m string) bool { return strings.Contains(m, "spares") }); i >= 0 {
		t.Errorf("mounts left: %v", mounts)
	}
	if exists(ready) {
		t.Error("a spare is left")
	}
	m, err := s.Rootfs.Mount(context.Background(), containerID(3))
	if err != nil {
		t.Fatal(err)
	}
	wantFile(t, filepath.Join(m.Path, "etc/mark"), "m", 0o644, 0, 0)
}
