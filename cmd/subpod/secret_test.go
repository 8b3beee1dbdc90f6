package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/subpod/subpod/pkg/config"
)

// secretCommands returns a function that calls "subpod secret" with a data directory of
// its own.
func secretCommands(t *testing.T) (dir string, call func(args ...string) error) {
	t.Helper()
	data := t.TempDir()
	file := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(file, []byte("[daemon]\ndata_dir = \""+data+"\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	dir = secretsDir(&config.Config{Daemon: config.Daemon{DataDir: data}})
	return dir, func(args ...string) error {
		root := newRoot()
		root.SetArgs(append([]string{"--config", file, "secret"}, args...))
		return root.Execute()
	}
}

// TestSecretRm removes what is named, and not what is at the end of a path.
func TestSecretRm(t *testing.T) {
	dir, call := secretCommands(t)
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := call("create", "token", text); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"other/token", "/token", "../secrets/token", ".", ""} {
		if err := call("rm", name); exitCode(err) != exitNotFound {
			t.Errorf("rm %q: %v; want not found", name, err)
		}
		if _, err := os.Stat(filepath.Join(dir, "token")); err != nil {
			t.Fatalf("after rm %q: %v", name, err)
		}
	}
	if err := call("rm", "token"); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
