package ocispec

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestImageSubPath(t *testing.T) {
	root := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(root, "a/b"), 0o755))
	must(t, os.Symlink("/a/b", filepath.Join(root, "abs")))
	must(t, os.Symlink("../../../../../../a", filepath.Join(root, "up")))
	must(t, os.Symlink("/etc/passwd", filepath.Join(root, "host")))
	for sub, want := range map[string]string{"": "", "a/b": "a/b", "abs": "a/b", "up/b": "a/b"} {
		got, err := ImageSubPath(root, sub)
		if err != nil || got != filepath.Join(root, want) {
			t.Errorf("%q: %q, %v", sub, got, err)
		}
	}
	for _, sub := range []string{"../x", "/a", "none", "host", "a/b/.." + "/../../.."} {
		if got, err := ImageSubPath(root, sub); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %q, %v", sub, got, err)
		}
	}
}
