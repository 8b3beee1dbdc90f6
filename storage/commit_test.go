package storage

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestCommit: an image of a container has what it has changed, with owners, modes, attributes
// and hard links, and lacks what it has deleted.
func TestCommit(t *testing.T) {
	for _, driver := range []string{DriverFuse, DriverNative} {
		t.Run(driver, func(t *testing.T) {
			s := openStore(t, testOptions(t, t.TempDir(), driver))
			img := sample(t, "commit")
			loadInto(t, s, "example.com/base:v1", img)
			m, err := s.Rootfs.Create(context.Background(), RootfsSpec{ID: containerID(1), ImageID: img.id()})
			if err != nil {
				t.Fatal(err)
			}
			at := func(name string) string { return filepath.Join(m.Path, name) }
			program := writeFile(t, at("srv/program"), "program")
			err = errorsOf(os.Chown(program, 1002, 1003), unix.Chmod(program, 0o4755), unix.Setxattr(program, "security.capability", []byte(netRaw), 0),
				unix.Setxattr(program, "user.note", []byte("hello"), 0), unix.Setxattr(at("srv"), "user.note", []byte("dir"), 0),
				os.Link(program, at("srv/other")), os.Symlink("/nowhere", at("srv/link")),
				os.Remove(at("etc/mark")), os.RemoveAll(at("data")), os.Mkdir(at("data"), 0o755))
			if err != nil {
				t.Fatal(err)
			}
			writeFile(t, at("data/mine"), "mine")
			made, err := Commit(context.Background(), s.Images, s.Rootfs, CommitSpec{Rootfs: m.ID, Name: "example.com/made:v1"})
			if err != nil {
				t.Fatal(err)
			}
			if found, err := s.Images.Get(context.Background(), "example.com/made:v1"); err != nil || found.ID != made.ID {
				t.Errorf("by its name: %+v, %v", found, err)
			}
			m, err = s.Rootfs.Create(context.Background(), RootfsSpec{ID: containerID(2), ImageID: made.ID})
			if err != nil {
				t.Fatal(err)
			}
			wantFile(t, at("srv/program"), "program", 0o4755, 1002, 1003)
			wantFile(t, at("srv/other"), "program", 0o4755, 1002, 1003)
			wantFile(t, at("data/mine"), "mine", 0o644, 0, 0)
			for name, attrs := range map[string]map[string]string{
				"srv/program": {"security.capability": netRaw, "user.note": "hello"}, "srv": {"user.note": "dir"},
			} {
				for attr, want := range attrs {
					b := make([]byte, 64)
					if n, err := unix.Lgetxattr(at(name), attr, b); err != nil || string(b[:max(n, 0)]) != want {
						t.Errorf("%s: %s is %q, %v", name, attr, b[:max(n, 0)], err)
					}
				}
			}
			var a, b unix.Stat_t
			if err := errorsOf(unix.Lstat(at("srv/program"), &a), unix.Lstat(at("srv/other"), &b)); err != nil || a.Ino != b.Ino {
				t.Errorf("hard links: %v, inodes %d and %d", err, a.Ino, b.Ino)
			}
			for _, name := range []string{"etc/mark", "data/new"} {
				if exists(at(name)) {
					t.Errorf("%s is there", name)
				}
			}
			if left, _ := os.ReadDir(s.layers.dirs.tmp()); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
			if problems, err := s.Images.Check(context.Background(), false); err != nil || len(problems) > 0 {
				t.Errorf("the store has problems: %v, %v", problems, err)
			}
			if err := s.Images.Save(context.Background(), []string{made.ID}, "oci-archive", io.Discard); err != nil {
				t.Errorf("the image cannot be saved: %v", err)
			}
		})
	}
}

// TestCommitLimit: a file that is nothing but a hole does not fill the disk.
func TestCommitLimit(t *testing.T) {
	s, id, root := volumeStore(t, DriverFuse, Limits{Size: 1 << 20}, layer{"f": {content: "x"}})
	if err := huge(filepath.Join(root, "hole")); err != nil {
		t.Fatal(err)
	}
	err := within(t, "the commit", func() error {
		_, err := Commit(context.Background(), s.Images, s.Rootfs, CommitSpec{Rootfs: id, Name: "example.com/huge:v1"})
		return err
	})
	if !errors.Is(err, ErrTooLarge) {
		t.Errorf("%v, want ErrTooLarge", err)
	}
}

// TestCommitFIFO: a container has put a FIFO into the place of a file while it is read, and
// writes nothing to it. The commit ends.
func TestCommitFIFO(t *testing.T) {
	dir := t.TempDir()
	file := writeFile(t, filepath.Join(dir, "f"), "content")
	info, err := os.Lstat(file)
	if err != nil {
		t.Fatal(err)
	}
	instead(t, file, func(p string) error { return unix.Mkfifo(p, 0o600) })
	writer, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	p := &layerPacker{ctx: t.Context(), root: root, upper: dir, out: tar.NewWriter(io.Discard), limits: Limits{Size: 1 << 20}}
	if err := within(t, "the commit", func() error { return p.pack("f", fs.FileInfoToDirEntry(info)) }); err == nil {
		t.Error("no error")
	}
}

// TestHostileLayerOut: a layer whose files a content process that was taken over has exchanged
// for links does not have the server read what they lead to, for an image or a registry.
func TestHostileLayerOut(t *testing.T) {
	registry := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodHead:
			w.WriteHeader(http.StatusNotFound)
		case r.Method == http.MethodPost:
			w.Header().Set("Location", r.URL.Path+"1")
			w.WriteHeader(http.StatusAccepted)
		}
	}))
	defer registry.Close()
	dir := t.TempDir()
	o := testOptions(t, dir, DriverFuse)
	host := strings.TrimPrefix(registry.URL, "http://")
	writeFile(t, o.RegistriesConf, "[[registry]]\nlocation = \""+host+"\"\ninsecure = true\n")
	s := openStore(t, o)
	img := sample(t, "out")
	loadInto(t, s, "example.com/out:v1", img)
	m, err := s.Rootfs.Create(context.Background(), RootfsSpec{ID: containerID(1), ImageID: img.id()})
	if err != nil {
		t.Fatal(err)
	}
	layers, err := s.layers.chain(img.id())
	if err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(dir, "secret")
	if err := fifo(t, secret); err != nil {
		t.Fatal(err)
	}
	instead(t, filepath.Join(s.layers.diffDir(layers[len(layers)-1]), "etc/mark"), func(p string) error { return os.Symlink(secret, p) })
	for what, do := range map[string]func() error{
		"commit": func() error {
			_, err := Commit(context.Background(), s.Images, s.Rootfs, CommitSpec{Rootfs: m.ID, Name: "example.com/made:v1"})
			return err
		},
		"push": func() error {
			_, err := s.Images.Push(context.Background(), "example.com/out:v1", host+"/out:v1")
			return err
		},
	} {
		t.Run(what, func(t *testing.T) {
			ended := make(chan error, 1)
			go func() { ended <- do() }()
			for {
				select {
				case err := <-ended:
					if err == nil {
						t.Error("no error")
					}
					return
				case <-time.After(5 * time.Millisecond):
				}
				if fd, err := unix.Open(secret, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err == nil {
					unix.Close(fd)
					t.Error("a file outside of the store was opened")
				}
			}
		})
	}
}
