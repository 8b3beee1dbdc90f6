package format

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// TestCheck: state of this version and of one without a note that can be read is taken, a
// newer one is refused.
func TestCheck(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state.db")
	if err := Check(file); err != nil {
		t.Errorf("without a note: %v", err)
	}
	for range 2 {
		if err := Write(file); err != nil {
			t.Fatal(err)
		}
	}
	if err := Check(file); err != nil {
		t.Errorf("of this version: %v", err)
	}
	for text, want := range map[string]error{"0\n": nil, "2\n": ErrTooNew, "1000": ErrTooNew} {
		if err := os.WriteFile(file+suffix, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := Check(file); !errors.Is(err, want) {
			t.Errorf("note %q: %v, want %v", text, err, want)
		}
	}
	for _, text := range []string{"", "x", "9999999999999999999999"} {
		if err := os.WriteFile(file+suffix, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := Check(file); err != nil {
			t.Errorf("note %q: %v", text, err)
		}
	}
}

// TestForeignNotes: what is there in the place of a note is neither waited for, nor read
// to its end, nor written to: it is no note, and is replaced.
func TestForeignNotes(t *testing.T) {
	dir := t.TempDir()
	other := filepath.Join(dir, "other")
	newer := func() error { return os.WriteFile(other, []byte("7\n"), 0o600) }
	for name, put := range map[string]func(path string) error{
		"FIFO":   func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"device": func(path string) error { return os.Symlink("/dev/zero", path) },
		"link":   func(path string) error { return errors.Join(newer(), os.Symlink(other, path)) },
		"large":  func(path string) error { return errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, 1<<40)) },
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "state.db")
			if err := errors.Join(put(file+suffix), put(file+suffix+".new")); err != nil {
				t.Fatal(err)
			}
			if err := Check(file); err != nil {
				t.Errorf("look: %v", err)
			}
			if err := Write(file); err != nil {
				t.Errorf("write: %v", err)
			}
			if text, err := os.ReadFile(file + suffix); err != nil || string(text) != "1\n" {
				t.Errorf("the note is %q, %v", text, err)
			}
			if text, err := os.ReadFile(other); err == nil && string(text) != "7\n" {
				t.Errorf("the file that a link leads to is %q", text)
			}
		})
	}
}
