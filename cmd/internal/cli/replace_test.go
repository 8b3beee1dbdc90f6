package cli

import (
	"os"
	"path/filepath"
	"testing"
)

// TestReplaceFile: a file is there whole or as before, is as private as it is to be, and a
// link in its place leads nowhere.
func TestReplaceFile(t *testing.T) {
	dir, outside := t.TempDir(), filepath.Join(t.TempDir(), "outside")
	if err := os.Mkdir(filepath.Join(dir, "new"), 0o755); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(filepath.Join(dir, "new"))
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	read := func(path string) string {
		b, _ := os.ReadFile(path)
		return string(b)
	}
	for _, name := range []string{"a", "sub/dir/a"} {
		path := filepath.Join(dir, "new", name)
		for _, text := range []string{"first, longer", "second"} {
			if err := ReplaceFile(root, name, text, 0o600); err != nil || read(path) != text {
				t.Fatalf("%s: %v, %q", name, err, read(path))
			}
			if err := os.Chmod(path, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := ReplaceFile(root, name, "third", 0o600); err != nil {
			t.Fatal(err)
		}
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, err, st.Mode())
		}
		inTheWay := filepath.Join(filepath.Dir(path), ".a.new/x")
		if err := os.MkdirAll(inTheWay, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := ReplaceFile(root, name, "fourth", 0o600); err == nil || read(path) != "third" {
			t.Errorf("%s broken off: %v, %q", name, err, read(path))
		}
		if err := os.RemoveAll(filepath.Dir(inTheWay)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(outside, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, "new/link")); err != nil {
		t.Fatal(err)
	}
	if err := ReplaceFile(root, "link", "x", 0o600); err != nil || read(outside) != "mine" {
		t.Errorf("a link in the place of the file: %v, %q", err, read(outside))
	}
	if err := os.Symlink(filepath.Dir(outside), filepath.Join(dir, "new/out")); err != nil {
		t.Fatal(err)
	}
	if err := ReplaceFile(root, "out/outside", "x", 0o600); err == nil || read(outside) != "mine" {
		t.Errorf("a link above the file: %v, %q", err, read(outside))
	}
}
