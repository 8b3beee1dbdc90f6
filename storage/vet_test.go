package storage

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestHostileStore: what a content process that was taken over leaves in the store, which
// it may write, neither leads the server out of it, nor keeps it, nor fills its memory.
func TestHostileStore(t *testing.T) {
	for _, c := range []struct {
		name string
		// spoil changes the store; victim is a directory outside of it.
		spoil func(t *testing.T, s *Store, img built, layer, victim string)
		// lost: the image can be lost.
		lost bool
	}{
		{"link is a FIFO", func(t *testing.T, s *Store, _ built, layer, _ string) {
			instead(t, filepath.Join(layer, "link"), func(p string) error { return fifo(t, p) })
		}, false},
		{"link is a directory", func(t *testing.T, s *Store, _ built, layer, _ string) {
			instead(t, filepath.Join(layer, "link"), func(p string) error { return os.MkdirAll(filepath.Join(p, "x"), 0o700) })
		}, false},
		{"link is a device", func(t *testing.T, s *Store, _ built, layer, _ string) {
			instead(t, filepath.Join(layer, "link"), func(p string) error { return unix.Mknod(p, unix.S_IFCHR, 0) })
		}, false},
		{"link is a link to a file without end", func(t *testing.T, s *Store, _ built, layer, _ string) {
			instead(t, filepath.Join(layer, "link"), func(p string) error { return os.Symlink("/dev/zero", p) })
		}, false},
		{"link is huge", func(t *testing.T, s *Store, _ built, layer, _ string) {
			instead(t, filepath.Join(layer, "link"), huge)
		}, false},
		{"link leads out", func(t *testing.T, s *Store, _ built, layer, victim string) {
			out, err := filepath.Rel(filepath.Join(s.layers.dirs.overlay(), "l"), victim)
			if err != nil {
				t.Fatal(err)
			}
			instead(t, filepath.Join(layer, "link"), func(p string) error { return os.WriteFile(p, []byte(out), 0o600) })
		}, false},
		{"the files are a link out", func(t *testing.T, s *Store, _ built, layer, victim string) {
			instead(t, filepath.Join(layer, "diff"), func(p string) error { return os.Symlink(victim, p) })
		}, true},
		{"the layer is a link out", func(t *testing.T, s *Store, _ built, layer, victim string) {
			if err := os.Mkdir(filepath.Join(victim, "diff"), 0o755); err != nil {
				t.Fatal(err)
			}
			instead(t, layer, func(p string) error { return os.Symlink(victim, p) })
		}, true},
		{"links are elsewhere", func(t *testing.T, s *Store, _ built, _, victim string) {
			instead(t, filepath.Join(s.layers.dirs.overlay(), "l"), func(p string) error { return os.Symlink(victim, p) })
		}, false},
		{"staged layers are elsewhere", func(t *testing.T, s *Store, _ built, _, victim string) {
			instead(t, s.layers.dirs.staging(), func(p string) error { return os.Symlink(victim, p) })
		}, false},
		{"a flag is a FIFO", func(t *testing.T, s *Store, _ built, _, _ string) {
			instead(t, filepath.Join(s.layers.dirs.overlay(), ".has-mount-program"), func(p string) error { return fifo(t, p) })
		}, false},
		{"a list is a FIFO", func(t *testing.T, s *Store, _ built, _, _ string) {
			instead(t, filepath.Join(s.layers.opts.Root, "overlay-layers/layers.json"), func(p string) error { return fifo(t, p) })
		}, true},
		{"a list is a link to a file without end", func(t *testing.T, s *Store, _ built, _, _ string) {
			instead(t, filepath.Join(s.layers.opts.Root, "overlay-images/images.json"), func(p string) error { return os.Symlink("/dev/zero", p) })
		}, true},
		{"a list is huge", func(t *testing.T, s *Store, _ built, _, _ string) {
			instead(t, filepath.Join(s.layers.opts.Root, "overlay-layers/layers.json"), huge)
		}, true},
		{"a layer's ID leads out", func(t *testing.T, s *Store, _ built, _, victim string) {
			renameInList(t, filepath.Join(s.layers.opts.Root, "overlay-layers/layers.json"), `"id":"`, "../../"+filepath.Base(victim))
		}, true},
		{"an image's ID leads out", func(t *testing.T, s *Store, _ built, _, victim string) {
			renameInList(t, filepath.Join(s.layers.opts.Root, "overlay-images/images.json"), `"id":"`, "../../"+filepath.Base(victim))
		}, true},
		{"a configuration is huge", func(t *testing.T, s *Store, img built, _, _ string) {
			dir := filepath.Join(s.layers.opts.Root, "overlay-images", img.id())
			entries, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				instead(t, filepath.Join(dir, e.Name()), huge)
			}
		}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			victim := filepath.Join(dir, "victim")
			writeFile(t, filepath.Join(victim, "secret"), "secret")
			if err := os.Symlink("nowhere", filepath.Join(victim, "dangling")); err != nil {
				t.Fatal(err)
			}
			o := testOptions(t, dir, DriverFuse)
			s := openStore(t, o)
			img := sample(t, "hostile")
			loadInto(t, s, "example.com/hostile:v1", img)
			layers, err := s.layers.chain(img.id())
			if err != nil {
				t.Fatal(err)
			}
			c.spoil(t, s, img, s.layers.layerDir(layers[0]), victim)
			use := func(when string, s *Store) {
				_ = within(t, when, func() error { useHostile(t, s, img, c.lost); return nil })
			}
			use("use", s)
			if err := within(t, "the end", s.Close); err != nil {
				t.Error(err)
			}
			err = within(t, "a start", func() error {
				again, err := Open(context.Background(), o)
				if err == nil {
					defer again.Close()
					use("use after a start", again)
					if _, err := again.Images.List(context.Background()); err != nil {
						t.Error(err)
					}
					_ = again.Images.Remove(context.Background(), img.id())
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
			wantFile(t, filepath.Join(victim, "secret"), "secret", 0o644, 0, 0)
			if !exists(filepath.Join(victim, "dangling")) {
				t.Error("a link outside was removed")
			}
		})
	}
}

// useHostile makes a root file system of the image, in which nothing of the victim may be.
func useHostile(t *testing.T, s *Store, img built, lost bool) {
	m, err := s.Rootfs.Create(context.Background(), RootfsSpec{ID: containerID(1), ImageID: img.id()})
	switch {
	case err == nil:
		if exists(filepath.Join(m.Path, "secret")) {
			t.Error("a container sees files of the host")
		}
		if err := s.Rootfs.Delete(context.Background(), m.ID); err != nil {
			t.Error(err)
		}
	case !lost:
		t.Error(err)
	case !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrImageNotFound):
		t.Errorf("%v, want ErrCorrupt", err)
	}
}

// instead replaces what is at path.
func instead(t *testing.T, path string, with func(string) error) {
	t.Helper()
	if err := errors.Join(os.RemoveAll(path), with(path)); err != nil {
		t.Fatal(err)
	}
}

// fifo makes a FIFO that ends with the test, and with it whatever waits for a writer.
func fifo(t *testing.T, path string) error {
	t.Cleanup(func() {
		if fd, err := unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err == nil {
			_ = os.Remove(path)
			unix.Close(fd)
		}
	})
	return unix.Mkfifo(path, 0o600)
}

// huge makes a file that no memory takes.
func huge(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(1<<40), f.Close())
}

// renameInList gives all entries of a list another value after key.
func renameInList(t *testing.T, path, key, value string) {
	t.Helper()
	parts := strings.Split(mustRead(t, path), key)
	for i := range parts[1:] {
		_, rest, _ := strings.Cut(parts[i+1], `"`)
		parts[i+1] = value + `"` + rest
	}
	instead(t, path, func(p string) error { return os.WriteFile(p, []byte(strings.Join(parts, key)), 0o600) })
}
