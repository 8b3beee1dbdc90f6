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
