package tree

import (
	"archive/tar"
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestPackGenerated: files that the kernel makes while they are read are copied whole.
func TestPackGenerated(t *testing.T) {
	root, err := os.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for _, path := range []string{"/proc/self/cmdline", "/proc/version", "/sys/kernel/mm/transparent_hugepage/enabled", "/proc/self/status"} {
		want, err := os.ReadFile(path)
		if err != nil {
			if strings.HasPrefix(path, "/sys") {
				continue // not every kernel has it
			}
			t.Fatal(err)
		}
		p, err := At(root, path)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		var stream bytes.Buffer
		if err := Pack(p, &stream); err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		into := t.TempDir()
		dir, err := os.OpenRoot(into)
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		if err := Unpack(t.Context(), dir, "copy", &stream); err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		got := read(t, filepath.Join(into, "copy"))
		if path == "/proc/self/status" { // it changes
			got, want = got[:20], want[:20]
		}
		if got != string(want) {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
}

// TestSetIDBits: they are dropped where files get the caller as their owner.
func TestSetIDBits(t *testing.T) {
	var stream bytes.Buffer
	w := tar.NewWriter(&stream)
	for _, h := range []tar.Header{
		{Name: "file", Typeflag: tar.TypeReg, Mode: 0o6755},
		{Name: "dir", Typeflag: tar.TypeDir, Mode: 0o6755},
		{Name: "hard", Typeflag: tar.TypeLink, Linkname: "file", Mode: 0o6755},
	} {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	const bits = fs.ModeSetuid | fs.ModeSetgid
	for name, c := range map[string]struct {
		unpack func(*os.Root, string, *bytes.Reader) error
		file   fs.FileMode
	}{
		"the caller's":  {func(d *os.Root, as string, r *bytes.Reader) error { return Unpack(t.Context(), d, as, r) }, 0},
		"a container's": {func(d *os.Root, as string, r *bytes.Reader) error { return UnpackSetID(t.Context(), d, as, r) }, bits},
	} {
		into := t.TempDir()
		dir, err := os.OpenRoot(into)
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		if err := c.unpack(dir, "", bytes.NewReader(stream.Bytes())); err != nil {
			t.Fatal(err)
		}
		for file, want := range map[string]fs.FileMode{"file": c.file, "hard": c.file, "dir": 0} {
			st, err := os.Lstat(filepath.Join(into, file))
			if err != nil {
				t.Fatal(err)
			}
			if got := st.Mode() & bits; got != want {
				t.Errorf("%s, %s: %v, want %v", name, file, got, want)
			}
		}
	}
}

// TestFIFO: one is made where files are a stranger's own, and none among the caller's, where
// it would hold up whoever opens it.
func TestFIFO(t *testing.T) {
	var stream bytes.Buffer
	w := tar.NewWriter(&stream)
	if err := w.WriteHeader(&tar.Header{Name: "new/fifo", Typeflag: tar.TypeFifo, Mode: 0o4622}); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	dir, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := Unpack(t.Context(), dir, "", bytes.NewReader(stream.Bytes())); err == nil {
		t.Error("among the caller's files: no error")
	}
	if err := UnpackSetID(t.Context(), dir, "", bytes.NewReader(stream.Bytes())); err != nil {
		t.Error(err)
	}
	if st, err := dir.Lstat("new/fifo"); err != nil || st.Mode() != fs.ModeNamedPipe|0o622 {
		t.Errorf("%v, %v", st, err)
	}
}
