package storage

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func always(string) bool { return true }

// volumeStore is a store with a root file system of an image that has these files.
func volumeStore(t *testing.T, driver string, limits Limits, files layer) (s *Store, id, root string) {
	t.Helper()
	o := testOptions(t, t.TempDir(), driver)
	o.Limits = limits
	s = openStore(t, o)
	img := build(t, imageSpec{layers: []layer{files}})
	loadInto(t, s, "example.com/volumes:v1", img)
	m, err := s.Rootfs.Create(context.Background(), RootfsSpec{ID: containerID(1), ImageID: img.id()})
	if err != nil {
		t.Fatal(err)
	}
	return s, m.ID, m.Path
}

// wantNoVolumes fails the test if there is anything of volumes.
func wantNoVolumes(t *testing.T, s *Store, id string) {
	t.Helper()
	if dir := filepath.Join(s.layers.dirs.rootfs(id), "volumes"); exists(dir) {
		t.Errorf("%s is there", dir)
	}
}

// TestVolumeLimits: what VOLUMEs hold together is bounded, as all that an image chooses,
// and an end of the request ends the copy; nothing stays.
func TestVolumeLimits(t *testing.T) {
	ctx := context.Background()
	files := layer{"a/": {typeflag: tar.TypeDir}, "b/": {typeflag: tar.TypeDir}}
	for _, name := range []string{"a/1", "a/2", "a/3", "b/1", "b/2", "b/3"} {
		files[name] = entry{content: random(40 << 10)}
	}
	s, id, _ := volumeStore(t, DriverFuse, Limits{}, files)
	ended, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, c := range []struct {
		what   string
		limits Limits
		want   error
		text   string
	}{
		{"bytes", Limits{Size: 200 << 10, Entries: 100}, ErrTooLarge, "images.limits.size"},
		{"entries", Limits{Size: 1 << 30, Entries: 5}, ErrTooLarge, "images.limits.entries"},
		{"an end", Limits{Size: 1 << 30, Entries: 100}, context.Canceled, ""},
	} {
		s.layers.opts.Limits = c.limits
		wanted, at := always, ctx
		if c.want == context.Canceled {
			at, wanted = ended, func(string) bool { cancel(); return true }
		}
		_, _, err := s.Rootfs.MakeVolumes(at, id, []string{"/a", "/b"}, wanted)
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v, want %v with %q", c.what, err, c.want, c.text)
		}
		wantNoVolumes(t, s, id)
	}
	s.layers.opts.Limits = Limits{Size: 300 << 10, Entries: 6}
	if made, _, err := s.Rootfs.MakeVolumes(ctx, id, []string{"/a", "/b"}, always); err != nil || len(made) != 2 {
		t.Errorf("%v %v", made, err)
	}
}

// TestNestedVolumes: what is in a VOLUME below another is copied once, into that.
func TestNestedVolumes(t *testing.T) {
	s, id, _ := volumeStore(t, DriverFuse, Limits{}, layer{
		"a/": {typeflag: tar.TypeDir}, "a/file": {content: "a"}, "a/b/": {typeflag: tar.TypeDir}, "a/b/file": {content: "b"}, "a/b/c/": {typeflag: tar.TypeDir}, "a/b/c/file": {content: "c"},
		"link": {typeflag: tar.TypeSymlink, link: "a/b/c"},
	})
	made, _, err := s.Rootfs.MakeVolumes(context.Background(), id, []string{"/a", "/a/b", "/link"}, always)
	if err != nil || len(made) != 3 {
		t.Fatal(made, err)
	}
	for i, want := range []struct{ there, gone, empty string }{
		{"file", "b/file", "b"}, {"file", "c/file", "c"}, {"file", "x", "."},
	} {
		dir := made[i].Dir
		if !exists(filepath.Join(dir, want.there)) || exists(filepath.Join(dir, want.gone)) || !exists(filepath.Join(dir, want.empty)) {
			t.Errorf("%s: want %s and an empty %s", made[i].Path, want.there, want.empty)
		}
	}
}

// TestVolumesStay: what a container has written into its volumes is there when it is made
// again; after a call for another path, and one that was cut short, they are made anew.
func TestVolumesStay(t *testing.T) {
	ctx := context.Background()
	s, id, _ := volumeStore(t, DriverFuse, Limits{}, layer{"a/": {typeflag: tar.TypeDir}, "a/file": {content: "a"}, "b/": {typeflag: tar.TypeDir}})
	make := func(paths ...string) (mark string) {
		t.Helper()
		made, _, err := s.Rootfs.MakeVolumes(ctx, id, paths, always)
		if err != nil || len(made) == 0 || made[0].Path != "/a" || !exists(filepath.Join(made[0].Dir, "file")) {
			t.Fatal(made, err)
		}
		return filepath.Join(made[0].Dir, "mark")
	}
	mark := make("/a", "/none")
	if err := os.WriteFile(mark, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if again := make("/a", "/none"); again != mark || !exists(mark) {
		t.Errorf("%s is gone", mark)
	}
	if again := make("/a"); !exists(again) {
		t.Errorf("%s is gone after less was asked for", again)
	}
	if again := make("/a", "/b"); exists(again) {
		t.Errorf("%s is there after another path was asked for", again)
	}
}

// describeTree describes the files of a tree, but not their content.
func describeTree(t *testing.T, root string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err := errors.Join(err, unix.Lstat(p, &st)); err != nil {
			return err
		}
		if d.IsDir() {
			st.Size, st.Nlink = 0, 0
		}
		target, _ := os.Readlink(p)
		fmt.Fprintf(&b, "%s %o %d:%d %d bytes, %d links, %v %s\n", strings.TrimPrefix(p, root), st.Mode, st.Uid, st.Gid, st.Size, st.Nlink, st.Mtim, target)
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	return b.String()
}

// TestVolumeContent: a copy has all that the image has: modes, owners, times, links with
// several names, attributes, and holes where there were some.
func TestVolumeContent(t *testing.T) {
	for _, driver := range []string{DriverFuse, DriverNative} {
		t.Run(driver, func(t *testing.T) {
			s, id, root := volumeStore(t, driver, Limits{}, layer{"v/": {typeflag: tar.TypeDir}})
			dir := filepath.Join(root, "v")
			if err := os.WriteFile(filepath.Join(dir, "setuid"), []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
			sparse, err := os.Create(filepath.Join(dir, "sparse"))
			if err != nil {
				t.Fatal(err)
			}
			_, err = sparse.WriteAt([]byte("end"), 64<<20)
			at := []unix.Timespec{{Sec: 1000, Nsec: 5}, {Sec: 2000, Nsec: 7}}
			for _, err := range []error{
				err, sparse.Close(), os.Chown(filepath.Join(dir, "setuid"), 7, 8), os.Chmod(filepath.Join(dir, "setuid"), 0o755|os.ModeSetuid),
				unix.Setxattr(filepath.Join(dir, "setuid"), "user.x", []byte("y"), 0),
				os.Link(filepath.Join(dir, "setuid"), filepath.Join(dir, "hard")), os.Mkdir(filepath.Join(dir, "sub"), 0o711),
				os.Symlink("nowhere", filepath.Join(dir, "sub", "link")), os.Lchown(filepath.Join(dir, "sub", "link"), 9, 9),
				unix.Mkfifo(filepath.Join(dir, "sub", "fifo"), 0o620), os.WriteFile(filepath.Join(dir, "empty"), nil, 0o400),
				unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(dir, "setuid"), at, 0), unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(dir, "sub"), at, 0),
			} {
				if err != nil {
					t.Fatal(err)
				}
			}
			made, _, err := s.Rootfs.MakeVolumes(context.Background(), id, []string{"/v"}, always)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := describeTree(t, made[0].Dir), describeTree(t, dir); got != want {
				t.Errorf("the copy has\n%s\nwant\n%s", got, want)
			}
			var st, hard unix.Stat_t
			if err := errors.Join(unix.Stat(filepath.Join(made[0].Dir, "sparse"), &st), unix.Stat(filepath.Join(made[0].Dir, "hard"), &hard)); err != nil {
				t.Fatal(err)
			}
			if st.Size != 64<<20+3 || st.Blocks*512 > 1<<20 {
				t.Errorf("the sparse file has %d bytes and takes %d", st.Size, st.Blocks*512)
			}
			var value [2]byte
			n, err := unix.Getxattr(filepath.Join(made[0].Dir, "setuid"), "user.x", value[:])
			if err != nil || string(value[:n]) != "y" || hard.Nlink != 2 || hard.Mtim != (unix.Timespec{Sec: 2000, Nsec: 7}) {
				t.Errorf("xattr %q %v, links %d, time %v", value[:max(n, 0)], err, hard.Nlink, hard.Mtim)
			}
		})
	}
}
