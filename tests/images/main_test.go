package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestDigestOf: other times are the same sources, another content or name is not.
func TestDigestOf(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "static", "main.go")
	write := func(text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	digest := func() string {
		t.Helper()
		d, err := digestOf(dir)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	write("one")
	before := digest()
	later := time.Now().Add(time.Hour)
	if err := os.Chtimes(file, later, later); err != nil {
		t.Fatal(err)
	}
	if digest() != before {
		t.Error("another time is another digest")
	}
	write("two")
	if digest() == before {
		t.Error("another content below a directory is the same digest")
	}
	write("one")
	if err := os.Rename(file, file+"x"); err != nil {
		t.Fatal(err)
	}
	if digest() == before {
		t.Error("another name is the same digest")
	}
}
