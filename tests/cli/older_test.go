package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/subpod/subpod/tests/node"
)

// TestOlderVersion: a program that cannot read the state on disk says so before it changes
// anything: the server goes on, and a daemon does not start.
func TestOlderVersion(t *testing.T) {
	n := node.Start(t, node.Options{Config: bridge})
	note := filepath.Join(n.DataDir, "state.db.version")
	ours, err := os.ReadFile(note)
	if err != nil {
		t.Fatal(err)
	}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(note, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	server := n.Enter("pgrep", "-x", "subpod-server")
	write("1000\n")
	if out, err := n.Subpod("reload"); err == nil || !strings.Contains(err.Error()+out, "written by a newer subpod") {
		t.Errorf("reload: %v: %s", err, out)
	}
	if after := n.Enter("pgrep", "-x", "subpod-server"); after != server {
		t.Errorf("the refusal cost the server: %s, was %s", after, server)
	}
	if out, err := n.Subpod("ps"); err != nil {
		t.Errorf("after the refusal: %v: %s", err, out)
	}
	write(string(ours))
	if out, err := n.Subpod("reload"); err != nil {
		t.Errorf("reload: %v: %s", err, out)
	}
	n.Stop()
	write("1000\n")
	if out, err := n.Subpod("daemon"); err == nil || !strings.Contains(err.Error()+out, "written by a newer subpod") {
		t.Errorf("daemon: %v: %s", err, out)
	}
	if _, err := os.Lstat(filepath.Join(filepath.Dir(n.Socket), "node")); err == nil {
		t.Error("a node was begun")
	}
}
