package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// smallDisk is a store on a file system of its own, of which a test leaves free as much
// or as little as it likes.
type smallDisk struct {
	*Store
	dir  string
	fill string // file that takes what is not left free
}

func newSmallDisk(t *testing.T, driver string, hosts ...string) *smallDisk {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=16m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	o := testOptions(t, dir, driver)
	insecureConf(t, o, hosts...)
	return &smallDisk{Store: openStore(t, o), dir: dir, fill: filepath.Join(dir, "fill")}
}

// leave fills the disk but for n bytes.
func (d *smallDisk) leave(t *testing.T, n int64) {
	t.Helper()
	if err := os.Remove(d.fill); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	f, err := os.Create(d.fill)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st unix.Statfs_t
	if err := unix.Statfs(d.dir, &st); err != nil {
		t.Fatal(err)
	}
	if size := int64(st.Bfree)*st.Bsize - n; size > 0 {
		if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err != nil {
			t.Fatal(err)
		}
	}
}

// files lists what is in the store, but for what the libraries remember.
func (d *smallDisk) files(t *testing.T) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(d.layers.opts.Root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if path == d.layers.dirs.cache() {
			return fs.SkipDir
		}
		files = append(files, path)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// everyStep has do run out of space at each of its steps: with a page more each time,
// until it succeeds. It must fail with ErrNoSpace and leave nothing; what it has made
// goes by undo, on a full disk.
func (d *smallDisk) everyStep(t *testing.T, do, undo func() error) {
	t.Helper()
	d.leave(t, 8<<20)
	if err := errors.Join(do(), undo()); err != nil { // makes what stays
		t.Fatal(err)
	}
	d.Images.work.Wait()
	before, page, failures := d.files(t), int64(os.Getpagesize()), 0
	for free := int64(0); free < 4<<20; free += page {
		d.leave(t, free)
		err := do()
		d.Images.work.Wait()
		if err == nil {
			d.leave(t, 0)
			if err := undo(); err != nil {
				t.Errorf("clean-up on a full disk: %v", err)
			}
			d.wantFiles(t, before, free)
			if failures == 0 {
				t.Error("it needed no space: nothing was tested")
			}
			t.Logf("%d failures, success with %d KiB free", failures, free>>10)
			return
		}
		failures++
		if !errors.Is(err, ErrNoSpace) {
			t.Errorf("with %d KiB free: %v, want ErrNoSpace", free>>10, err)
		}
		d.wantFiles(t, before, free)
		if t.Failed() {
			return
		}
	}
	t.Error("4 MiB were not enough")
}

func (d *smallDisk) wantFiles(t *testing.T, before []string, free int64) {
	t.Helper()
	for _, f := range d.files(t) {
		if !slices.Contains(before, f) {
			t.Errorf("with %d KiB free this was left: %s", free>>10, strings.TrimPrefix(f, d.dir))
		}
	}
}

// spacious is an image that takes space in every place: two layers, one of many files.
func spacious(t *testing.T) built {
	l := layer{}
	for i := range 20 {
		l[fmt.Sprintf("f%d", i)] = entry{content: random(6000)}
	}
	return build(t, imageSpec{layers: []layer{{"first": {content: random(30000)}}, l}})
}

func TestNoSpaceAtEachStep(t *testing.T) {
	ctx := context.Background()
	img := spacious(t)
	for _, driver := range []string{DriverFuse, DriverVFS} {
		t.Run("pull/"+driver, func(t *testing.T) {
			r := startFake(t, img, nil)
			d := newSmallDisk(t, driver, r.host)
			ref := r.host + "/app:v1"
			d.everyStep(t, func() error {
				_, err := d.Images.Pull(ctx, PullRequest{Ref: ref})
				return err
			}, func() error { return d.Images.Remove(ctx, ref) })
		})
		t.Run("load/"+driver, func(t *testing.T) {
			d := newSmallDisk(t, driver)
			archive := writeFile(t, filepath.Join(t.TempDir(), "app.tar"), string(tarOfDir(t, writeLayout(t, t.TempDir(), map[string]built{"example.com/app:v1": img}))))
			d.everyStep(t, func() error {
				_, err := d.Images.Load(ctx, archive)
				return err
			}, func() error { return d.Images.Remove(ctx, "example.com/app:v1") })
		})
		t.Run("rootfs/"+driver, func(t *testing.T) {
			d := newSmallDisk(t, driver)
			loadInto(t, d.Store, "example.com/app:v1", img)
			d.everyStep(t, func() error {
				_, err := d.Rootfs.Create(ctx, RootfsSpec{ID: containerID(1), ImageID: img.id()})
				return err
			}, func() error { return d.Rootfs.Delete(ctx, containerID(1)) })
		})
	}
	t.Run("save", func(t *testing.T) {
		d := newSmallDisk(t, DriverFuse)
		loadInto(t, d.Store, "example.com/app:v1", img)
		d.everyStep(t, func() error {
			return d.Images.Save(ctx, []string{"example.com/app:v1"}, "docker-archive", &bytes.Buffer{})
		}, func() error { return nil })
	})
}

// TestOpenOnFullDisk: a server that starts on a full disk has its store, and can make
// room.
func TestOpenOnFullDisk(t *testing.T) {
	ctx := context.Background()
	d := newSmallDisk(t, DriverFuse)
	loadInto(t, d.Store, "example.com/app:v1", spacious(t))
	o := d.layers.opts
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d.leave(t, 0)
	d.Store = openStore(t, o)
	if images, err := d.Images.List(ctx); err != nil || len(images) != 1 {
		t.Errorf("images %v, %v", images, err)
	}
	if err := d.Images.Remove(ctx, "example.com/app:v1"); err != nil {
		t.Error(err)
	}
	wantClean(t, d.Store, 0)
}
