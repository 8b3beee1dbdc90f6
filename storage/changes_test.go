package storage

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestChanges: what a container has changed is listed as it would say it, without the
// marks of the file system.
func TestChanges(t *testing.T) {
	for _, driver := range []string{DriverFuse, DriverNative} {
		t.Run(driver, func(t *testing.T) {
			s := openStore(t, testOptions(t, t.TempDir(), driver))
			img := sample(t, "changes")
			loadInto(t, s, "example.com/base:v1", img)
			m, err := s.Rootfs.Create(context.Background(), RootfsSpec{ID: containerID(1), ImageID: img.id()})
			if err != nil {
				t.Fatal(err)
			}
			at := func(name string) string { return filepath.Join(m.Path, name) }
			writeFile(t, at("fresh/deeper/file"), "new")
			if err := errors.Join(os.Remove(at("etc/mark")), os.RemoveAll(at("data")), os.Mkdir(at("data"), 0o755)); err != nil {
				t.Fatal(err)
			}
			changes, err := s.Rootfs.Changes(context.Background(), m.ID)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, c := range changes {
				got = append(got, c.Kind+" "+c.Path)
			}
			want := []string{"C /data", "C /etc", "D /etc/mark", "A /fresh", "A /fresh/deeper", "A /fresh/deeper/file"}
			if !slices.Equal(got, want) {
				t.Errorf("the changes are %q, want %q", got, want)
			}
		})
	}
}

// TestChangesThroughNoLink: a container has made directories where its image has links, or
// makes links while it is looked at, and paths that are longer than the kernel takes. What
// lies behind a link is not looked at, nor is it the container's.
func TestChangesThroughNoLink(t *testing.T) {
	outside := t.TempDir()
	writeFile(t, filepath.Join(outside, "f"), "")
	s, id, root := volumeStore(t, DriverNative, Limits{}, layer{
		"away": {typeflag: tar.TypeSymlink, link: outside}, "near": {typeflag: tar.TypeSymlink, link: "real"}, "real/f": {}})
	for _, name := range []string{"away", "near"} {
		if err := os.Remove(filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(root, name, "f"), "")
	}
	want := []string{"C /away", "A /away/f", "C /near", "A /near/f"}
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY, 0)
	deep, path := "z"+strings.Repeat("d", 200), ""
	for i := 0; i < 30 && err == nil; i++ {
		var next int
		if err = unix.Mkdirat(fd, deep, 0o755); err == nil {
			next, err = unix.Openat(fd, deep, unix.O_PATH|unix.O_DIRECTORY, 0)
			unix.Close(fd)
			fd, path = next, path+"/"+deep
			want = append(want, "A "+path)
		}
	}
	unix.Close(fd)
	if err != nil {
		t.Fatal(err)
	}
	changes, err := s.Rootfs.Changes(t.Context(), id)
	if err != nil {
		t.Fatalf("%.300v", err)
	}
	var got []string
	for _, c := range changes {
		got = append(got, c.Kind+" "+c.Path)
	}
	if !slices.Equal(got, want) {
		t.Errorf("the changes are %.300q, want %.300q", got, want)
	}
}

// TestDeleteDeep: a container has made directories in each other, more than the server may
// have files open. Its root file system is deleted all the same.
func TestDeleteDeep(t *testing.T) {
	s := openStore(t, testOptions(t, t.TempDir(), DriverNative))
	img := sample(t, "deep")
	loadInto(t, s, "example.com/base:v1", img)
	m, err := s.Rootfs.Create(context.Background(), RootfsSpec{ID: containerID(1), ImageID: img.id()})
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(m.Path, unix.O_PATH|unix.O_DIRECTORY, 0)
	for i := 0; i < 3000 && err == nil; i++ {
		var next int
		if err = unix.Mkdirat(fd, "d", 0o755); err == nil {
			next, err = unix.Openat(fd, "d", unix.O_PATH|unix.O_DIRECTORY, 0)
			unix.Close(fd)
			fd = next
		}
	}
	unix.Close(fd)
	if err != nil {
		t.Fatal(err)
	}
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 400, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	err = s.Rootfs.Delete(context.Background(), m.ID)
	if err := errors.Join(err, unix.Setrlimit(unix.RLIMIT_NOFILE, &old)); err != nil {
		t.Errorf("delete: %.300s", fmt.Sprint(err))
	}
}
