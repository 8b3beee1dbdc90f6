package tree

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o640); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

// world is a root directory with links that try to lead out of it, and what lies
// beside it.
func world(t *testing.T) (root *os.File, dir, outside string) {
	t.Helper()
	top := t.TempDir()
	dir, outside = filepath.Join(top, "root"), filepath.Join(top, "outside")
	write(t, filepath.Join(dir, "etc/passwd"), "inside")
	write(t, filepath.Join(top, "etc/passwd"), "outside")
	write(t, filepath.Join(dir, "d/sub/f"), "deep")
	write(t, filepath.Join(outside, "f"), "outside")
	for name, to := range map[string]string{
		"absolute": "/etc/passwd", "up": "../../../../../../etc/passwd", "dir": outside, "d/link": "sub/f", "dangling": "/nothing",
	} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root, dir, outside
}

func TestAtStaysInside(t *testing.T) {
	root, _, _ := world(t)
	for _, name := range []string{"absolute", "up", "/etc/passwd", "../../etc/passwd"} {
		p, err := At(root, name)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		b, err := p.ReadFile(p.Name)
		if err != nil || string(b) != "inside" {
			t.Errorf("%s: %q, %v", name, b, err)
		}
		p.Close()
	}
	if _, err := At(root, "dir/f"); !errors.Is(err, ErrNotFound) {
		t.Errorf("through a link to a directory outside: %v", err)
	}
	p, err := At(root, "new")
	if err != nil || p.Exists || p.Name != "new" {
		t.Fatalf("a name that is free: %+v, %v", p, err)
	}
	p.Close()
}

func TestPackUnpack(t *testing.T) {
	root, _, _ := world(t)
	p, err := At(root, "d")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	var stream bytes.Buffer
	if err := Pack(p, &stream); err != nil {
		t.Fatal(err)
	}
	into := t.TempDir()
	dir, err := os.OpenRoot(into)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	for range 2 { // over what is there
		if err := Unpack(t.Context(), dir, "renamed", bytes.NewReader(stream.Bytes())); err != nil {
			t.Fatal(err)
		}
	}
	if got := read(t, filepath.Join(into, "renamed/link")); got != "deep" {
		t.Errorf("through the link: %q", got)
	}
	if st, err := os.Stat(filepath.Join(into, "renamed/sub/f")); err != nil || st.Mode().Perm() != 0o640 {
		t.Errorf("mode: %v, %v", st, err)
	}
}

// TestRawNames: names of directories need not be UTF-8.
func TestRawNames(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "caf\xe9/\xff/f\xfe"), "text")
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	p, err := At(root, "/caf\xe9")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	var stream bytes.Buffer
	if err := Pack(p, &stream); err != nil {
		t.Fatal(err)
	}
	to, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	if err := Unpack(t.Context(), to, "", &stream); err != nil {
		t.Fatal(err)
	}
	if got, err := to.ReadFile("caf\xe9/\xff/f\xfe"); err != nil || string(got) != "text" {
		t.Errorf("%q, %v", got, err)
	}
}

// TestHostileStreams: nothing is written outside of the directory.
func TestHostileStreams(t *testing.T) {
	for _, c := range []struct {
		name    string
		entries []tar.Header
		want    error
	}{
		{"dots", []tar.Header{{Name: "../escaped", Typeflag: tar.TypeReg, Mode: 0o644}}, nil},
		{"absolute", []tar.Header{{Name: "/escaped", Typeflag: tar.TypeReg, Mode: 0o644}}, nil},
		{"through a link", []tar.Header{{Name: "l", Typeflag: tar.TypeSymlink, Linkname: ".."}, {Name: "l/escaped", Typeflag: tar.TypeReg, Mode: 0o644}}, ErrArchive},
		{"hard link", []tar.Header{{Name: "h", Typeflag: tar.TypeLink, Linkname: "../victim"}}, ErrArchive},
		{"over a link", []tar.Header{{Name: "v", Typeflag: tar.TypeSymlink, Linkname: "../victim"}, {Name: "v", Typeflag: tar.TypeReg, Mode: 0o644}}, nil},
		{"device", []tar.Header{{Name: "dev", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}}, ErrArchive},
		{"long name", []tar.Header{{Name: strings.Repeat("n", 300), Typeflag: tar.TypeReg, Mode: 0o644}}, ErrArchive},
		{"below a file", []tar.Header{{Name: "f", Typeflag: tar.TypeReg, Mode: 0o644}, {Name: "f/below", Typeflag: tar.TypeReg, Mode: 0o644}}, ErrArchive},
	} {
		t.Run(c.name, func(t *testing.T) {
			top := t.TempDir()
			write(t, filepath.Join(top, "victim"), "untouched")
			if err := os.Mkdir(filepath.Join(top, "in"), 0o755); err != nil {
				t.Fatal(err)
			}
			var stream bytes.Buffer
			w := tar.NewWriter(&stream)
			for i := range c.entries {
				if err := w.WriteHeader(&c.entries[i]); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			dir, err := os.OpenRoot(filepath.Join(top, "in"))
			if err != nil {
				t.Fatal(err)
			}
			defer dir.Close()
			if err := Unpack(t.Context(), dir, "", &stream); !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
			if _, err := os.Lstat(filepath.Join(top, "escaped")); err == nil {
				t.Error("a file was written outside")
			}
			if got := read(t, filepath.Join(top, "victim")); got != "untouched" {
				t.Errorf("the file outside holds %q", got)
			}
			if st, err := os.Lstat(filepath.Join(top, "in/h")); err == nil {
				if out, _ := os.Stat(filepath.Join(top, "victim")); os.SameFile(st, out) {
					t.Error("a hard link leads outside")
				}
			}
			if st, err := os.Lstat(filepath.Join(top, "in/dev")); err == nil && st.Mode()&os.ModeDevice != 0 {
				t.Error("a device was made")
			}
		})
	}
}

// TestBadStreams: what is no archive is told from a sender that fails.
func TestBadStreams(t *testing.T) {
	var whole bytes.Buffer
	w := tar.NewWriter(&whole)
	if err := w.WriteHeader(&tar.Header{Name: "f", Typeflag: tar.TypeReg, Mode: 0o644, Size: 5}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("12345")); err != nil {
		t.Fatal(err)
	}
	gone := errors.New("the client has gone")
	for name, c := range map[string]struct {
		stream io.Reader
		want   error
	}{
		"junk":             {strings.NewReader(strings.Repeat("junk", 512)), ErrArchive},
		"cut off":          {bytes.NewReader(whole.Bytes()[:514]), ErrArchive},
		"cut off by death": {io.MultiReader(bytes.NewReader(whole.Bytes()[:514]), iotest.ErrReader(gone)), gone},
	} {
		dir, err := os.OpenRoot(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		if err := Unpack(t.Context(), dir, "", c.stream); !errors.Is(err, c.want) || errors.Is(err, ErrArchive) != (c.want == ErrArchive) {
			t.Errorf("%s: %v", name, err)
		}
		dir.Close()
	}
}

// TestNoDirectoryEntries: directories that a stream has no entries for are made, as tar(1)
// does; those that are there, and links out, are not touched.
func TestNoDirectoryEntries(t *testing.T) {
	_, dir, outside := world(t)
	into, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer into.Close()
	if err := os.Symlink(outside, filepath.Join(dir, "out")); err != nil {
		t.Fatal(err)
	}
	stream := func(name string) *bytes.Reader {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: 1}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		return bytes.NewReader(b.Bytes())
	}
	if err := UnpackOwned(t.Context(), into, "", stream("new/deeper/file")); err != nil {
		t.Fatal(err)
	}
	if got := read(t, filepath.Join(dir, "new/deeper/file")); got != "x" {
		t.Errorf("the file has %q", got)
	}
	if err := UnpackOwned(t.Context(), into, "", stream("out/new/file")); err == nil {
		t.Error("a directory was made through a link out")
	}
	if _, err := os.Lstat(filepath.Join(outside, "new")); err == nil {
		t.Error("there is a directory outside")
	}
}
