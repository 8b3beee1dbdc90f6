package volumes_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/volumes"
)

func store(t *testing.T) *volumes.Store {
	t.Helper()
	return &volumes.Store{Dir: filepath.Join(t.TempDir(), "volumes")}
}

// TestLife: a volume is made once, listed with its labels, and removed with its content.
func TestLife(t *testing.T) {
	s := store(t)
	if list, err := s.List(); err != nil || list == nil || len(list) != 0 {
		t.Errorf("no volumes: %v, %v", list, err)
	}
	v, err := s.Create("a", map[string]string{"tier": "db"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create("a", nil); !errors.Is(err, volumes.ErrExists) {
		t.Errorf("a second one: %v", err)
	}
	for _, name := range []string{"", ".info", "-a", "a/b", "..", "a b"} {
		if _, err := s.Create(name, nil); !errors.Is(err, volumes.ErrName) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if err := os.Mkdir(filepath.Join(s.Dir, "old"), 0o755); err != nil { // of an earlier version
		t.Fatal(err)
	}
	list, err := s.List()
	if err != nil || len(list) != 2 || list[0].Labels["tier"] != "db" || list[1].Name != "old" || list[1].Labels == nil {
		t.Errorf("%+v, %v", list, err)
	}
	if err := os.WriteFile(filepath.Join(v.Path, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove("a"); err != nil {
		t.Error(err)
	}
	if err := s.Remove("a"); !errors.Is(err, volumes.ErrNotFound) {
		t.Errorf("removed twice: %v", err)
	}
	left, _ := os.ReadDir(filepath.Join(s.Dir, ".info"))
	if len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// TestFill: an empty volume gets the content with the mode of its directory, in the
// directory that may be mounted already; one with content, or after an error, stays.
func TestFill(t *testing.T) {
	s := store(t)
	calls := 0
	write := func(dir string) error {
		calls++
		if err := os.Mkdir(dir, 0o750); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, "f"), []byte("content"), 0o600)
	}
	full := errors.New("no space left on device")
	err := s.Fill("a", func(dir string) error { return errors.Join(write(dir), full) })
	v, getErr := s.Get("a")
	if !errors.Is(err, full) || getErr != nil {
		t.Fatalf("%v, %v", err, getErr)
	}
	before, err := os.Stat(v.Path)
	if err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(v.Path); len(left) != 0 {
		t.Errorf("after an error there is %v", left)
	}
	if left, _ := filepath.Glob(filepath.Join(s.Dir, ".info", "fill-*")); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	if err := s.Fill("a", write); err != nil {
		t.Fatal(err)
	}
	after, err := os.Stat(v.Path)
	if err != nil || !os.SameFile(before, after) || after.Mode().Perm() != 0o750 {
		t.Errorf("the directory: %v, %v", after, err)
	}
	if text, err := os.ReadFile(filepath.Join(v.Path, "f")); string(text) != "content" {
		t.Errorf("%q, %v", text, err)
	}
	if err := s.Fill("a", write); err != nil || calls != 2 {
		t.Errorf("a volume with content: %v, %d calls", err, calls)
	}
	if err := s.Fill("b", nil); err != nil {
		t.Error(err)
	}
	if err := s.Fill("c", func(string) error { return nil }); err != nil { // the image has nothing
		t.Error(err)
	}
}

// TestExportImport: what is exported comes back; a stream that ends too early changes
// nothing.
func TestExportImport(t *testing.T) {
	s := store(t)
	for _, name := range []string{"a", "b"} {
		if _, err := s.Create(name, nil); err != nil {
			t.Fatal(err)
		}
	}
	a, _ := s.Get("a")
	b, _ := s.Get("b")
	if err := errors.Join(os.MkdirAll(filepath.Join(a.Path, "d", "e"), 0o755), os.WriteFile(filepath.Join(a.Path, "d", "f"), []byte("x"), 0o640),
		os.Symlink("f", filepath.Join(a.Path, "d", "l"))); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := s.Export(t.Context(), "a", &out); err != nil {
		t.Fatal(err)
	}
	whole := out.Bytes()
	if err := os.WriteFile(filepath.Join(b.Path, "kept"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Import(t.Context(), "b", io.LimitReader(bytes.NewReader(whole), int64(len(whole)/2))); err == nil {
		t.Error("half of a stream is no error")
	}
	if left, _ := os.ReadDir(b.Path); len(left) != 1 {
		t.Errorf("after half of a stream there is %v", left)
	}
	if err := s.Import(t.Context(), "b", bytes.NewReader(whole)); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(filepath.Join(b.Path, "d", "l")); string(text) != "x" {
		t.Errorf("%q, %v", text, err)
	}
	if _, err := os.Stat(filepath.Join(b.Path, "kept")); err != nil {
		t.Error(err)
	}
	if err := s.Import(t.Context(), "none", bytes.NewReader(whole)); !errors.Is(err, volumes.ErrNotFound) {
		t.Errorf("no volume: %v", err)
	}
	// A name that leads out of the volume.
	var evil bytes.Buffer
	w := tar.NewWriter(&evil)
	_ = w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "out", Linkname: "/"})
	_ = w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "out/tmp/evil", Mode: 0o644})
	_ = w.Close()
	if err := s.Import(t.Context(), "b", &evil); err == nil {
		t.Error("a path through a link to the root is no error")
	}
	if left, _ := filepath.Glob(filepath.Join(s.Dir, ".info", "import-*")); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// TestFIFO: what Export has written of a volume with a FIFO, Import takes.
func TestFIFO(t *testing.T) {
	s := store(t)
	from, err := s.Create("from", nil)
	if err != nil {
		t.Fatal(err)
	}
	into, err := s.Create("into", nil)
	if err != nil {
		t.Fatal(err)
	}
	fifo := filepath.Join("d", "fifo")
	if err := errors.Join(os.Mkdir(filepath.Join(from.Path, "d"), 0o755), unix.Mkfifo(filepath.Join(from.Path, fifo), 0o600),
		os.Chmod(filepath.Join(from.Path, fifo), 0o622)); err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	if err := s.Export(t.Context(), "from", &archive); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time one is there
		if err := s.Import(t.Context(), "into", bytes.NewReader(archive.Bytes())); err != nil {
			t.Fatal(err)
		}
		if st, err := os.Lstat(filepath.Join(into.Path, fifo)); err != nil || st.Mode() != fs.ModeNamedPipe|0o622 {
			t.Errorf("%v, %v", st, err)
		}
	}
}
