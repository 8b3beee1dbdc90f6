package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestReadBounded: files that the user names are read to a bound, also those that have no
// end.
func TestReadBounded(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	if id, err := readIDFile("--cidfile", file("id", " 0123\n")); err != nil || id != "0123" {
		t.Errorf("%q, %v", id, err)
	}
	small, large := file("small", "A=1\nB=2"), file("large", strings.Repeat("A=1\n", maxLines/4+1))
	if envs, err := environmentOf(false, []string{small}, nil); err != nil || len(envs) != 2 {
		t.Errorf("%v, %v", envs, err)
	}
	for name, err := range map[string]error{
		"--cidfile":     second(readIDFile("--cidfile", "/dev/zero")),
		"--env-file":    second(environmentOf(false, []string{large}, nil)),
		"endless line":  second(environmentOf(false, []string{"/dev/zero"}, nil)),
		"a manifest":    second(readManifests([]string{"/dev/zero"})),
		"a secret":      second(secretText("/dev/zero", false)),
		"no such file":  second(readIDFile("--cidfile", filepath.Join(dir, "nosuch"))),
		"no such lines": second(environmentOf(false, []string{filepath.Join(dir, "nosuch")}, nil)),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestReplaceFile: a file is there whole or as before, is as private as it is to be, and a
// link in its place leads nowhere.
func TestReplaceFile(t *testing.T) {
	dir, outside := t.TempDir(), filepath.Join(t.TempDir(), "outside")
	root, err := openDir(filepath.Join(dir, "new"))
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
			if err := replaceFile(root, name, text, 0o600); err != nil || read(path) != text {
				t.Fatalf("%s: %v, %q", name, err, read(path))
			}
			if err := os.Chmod(path, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := replaceFile(root, name, "third", 0o600); err != nil {
			t.Fatal(err)
		}
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, err, st.Mode())
		}
		inTheWay := filepath.Join(filepath.Dir(path), ".a.new/x")
		if err := os.MkdirAll(inTheWay, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := replaceFile(root, name, "fourth", 0o600); err == nil || read(path) != "third" {
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
	if err := replaceFile(root, "link", "x", 0o600); err != nil || read(outside) != "mine" {
		t.Errorf("a link in the place of the file: %v, %q", err, read(outside))
	}
	if err := os.Symlink(filepath.Dir(outside), filepath.Join(dir, "new/out")); err != nil {
		t.Fatal(err)
	}
	if err := replaceFile(root, "out/outside", "x", 0o600); err == nil || read(outside) != "mine" {
		t.Errorf("a link above the file: %v, %q", err, read(outside))
	}
}

// TestFinishFile: an archive is as private as the umask has it, and there only when whole.
func TestFinishFile(t *testing.T) {
	dir := t.TempDir()
	for mask, want := range map[int]os.FileMode{0o022: 0o644, 0o077: 0o600, 0o002: 0o664} {
		f, err := os.CreateTemp(dir, ".save-*")
		if err != nil {
			t.Fatal(err)
		}
		old := unix.Umask(mask)
		err = finishFile(f, filepath.Join(dir, "archive"), nil)
		unix.Umask(old)
		if st, statErr := os.Stat(filepath.Join(dir, "archive")); err != nil || statErr != nil || st.Mode().Perm() != want {
			t.Errorf("umask %04o: %v, %v, %v", mask, err, statErr, st.Mode())
		}
	}
	f, err := os.CreateTemp(dir, ".save-*")
	if err != nil {
		t.Fatal(err)
	}
	if err := finishFile(f, filepath.Join(dir, "none"), errors.New("broken off")); err == nil {
		t.Error("no error")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func second[T any](_ T, err error) error { return err }
