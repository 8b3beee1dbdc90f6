package format

import (
	"errors"
	"os"
	"path/filepath"
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
