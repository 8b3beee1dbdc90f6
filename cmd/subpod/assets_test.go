package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/subpod/subpod/configs"
)

// TestAssets: each command has a manual page, and subpod.toml(5) each key.
func TestAssets(t *testing.T) {
	dir := t.TempDir()
	root := newRoot()
	if err := writeAssets(root, dir, "/opt/subpod"); err != nil {
		t.Fatal(err)
	}
	for _, cmd := range root.Commands() {
		page := filepath.Join(dir, "share/man/man1", pageName(cmd)+".1")
		if _, err := os.Stat(page); cmd.IsAvailableCommand() && err != nil {
			t.Error(err)
		}
	}
	page, err := os.ReadFile(filepath.Join(dir, "share/man/man5/subpod.toml.5"))
	if err != nil {
		t.Fatal(err)
	}
	keys := 0
	for line := range strings.Lines(configs.Default) {
		if key, _, ok := strings.Cut(line, " = "); ok && !strings.HasPrefix(line, "#") {
			keys++
			if !strings.Contains(string(page), "\\fB"+roff(key)+" = ") {
				t.Errorf("subpod.toml(5) has no %s", key)
			}
		}
	}
	if keys < 50 {
		t.Errorf("only %d keys in the default configuration: the search is wrong", keys)
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if strings.Contains(string(text), "%h/") || strings.Contains(string(text), dir) || len(text) == 0 {
			t.Errorf("%s is empty, or names another place", path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
