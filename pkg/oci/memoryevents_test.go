package oci

import (
	"io"
	"os"
	"path/filepath"
	"testing"
)

// The file is that of the container's own cgroup, in the version 2 tree.
func TestMemoryEvents(t *testing.T) {
	root := t.TempDir()
	for dir, text := range map[string]string{"": "root", "pod/box": "box"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, dir, "memory.events"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for cgroup, want := range map[string]string{
		"0::/pod/box\n":                    "box",
		"4:memory:/pod/box\n0::/pod/box\n": "box",
		"4:memory:/pod/box\n":              "",
		"0::/\n":                           "", // not the container's alone
		"0::/pod\n":                        "",
		"0::/pod/box (deleted)\n":          "",
		"":                                 "",
	} {
		got := ""
		if f := memoryEvents(root, []byte(cgroup)); f != nil {
			b, err := io.ReadAll(f)
			if err != nil {
				t.Error(err)
			}
			got = string(b)
			f.Close()
		}
		if got != want {
			t.Errorf("%q has %q, want %q", cgroup, got, want)
		}
	}
}
