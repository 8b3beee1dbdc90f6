package main

import (
	"os"
	"path/filepath"
	"testing"
)

// TestCalledPath: a link to this program stays one, and the name of another program, which a
// caller may give it, does not count.
func TestCalledPath(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	called := os.Args[0]
	defer func() { os.Args[0] = called }()
	link := filepath.Join(t.TempDir(), "subpod")
	if err := os.Symlink(exe, link); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{link: link, "true": exe, "/bin/true": exe, "-subpod": exe, "": exe} {
		os.Args[0] = name
		if got, err := calledPath(); err != nil || got != want {
			t.Errorf("called as %q: %q, %v, want %q", name, got, err, want)
		}
	}
}
