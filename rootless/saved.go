package rootless

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Environment of the server, set by the supervisor. A supervisor is as old as its
// node: one of an earlier version sets neither.
const (
	envSaved    = "SUBPOD_SAVED_CONFIG"     // where the configuration is kept that served last
	envUseSaved = "SUBPOD_USE_SAVED_CONFIG" // set when the server before this one ended before it served
)

// savedConfig is a file in the node's directory: it lives as long as the node.
func savedConfig(runDir string) string { return filepath.Join(nodeDir(runDir), fileSaved) }

// SavedConfig returns the file in which the server keeps the configuration with which
// it serves, for its successors: it has what the server wrote there when it was last
// ready, or is not there. use asks the server to start with it instead of the one on
// disk, because the server before it ended before it served. "" where the supervisor
// is of a version that knows no such file. Both are removed from the environment, which
// the server's own children inherit.
func SavedConfig() (file string, use bool) {
	file, use = os.Getenv(envSaved), os.Getenv(envUseSaved) != ""
	os.Unsetenv(envSaved)
	os.Unsetenv(envUseSaved)
	return file, use
}

// outsideDir has what commands outside of the node take as true: a node with ViewMinimal
// shows it read-only, so that what has escaped into the node cannot write it.
func outsideDir(runDir string) string { return filepath.Join(runDir, "outside") }

// ServedConfig returns the file with the configuration that the server of the node
// served with last. Outside of the node it is the one that KeepServed, or the start of
// the daemon, has written.
func (n *Node) ServedConfig() string {
	if _, err := os.Stat(outsideDir(n.RunDir)); err == nil && !n.Inside {
		return filepath.Join(outsideDir(n.RunDir), fileSaved)
	}
	return savedConfig(n.RunDir) // a node of an earlier version
}

// KeepServed replaces what ServedConfig gives outside of the node: a command outside
// calls it when the server has come to serve with another configuration. It does
// nothing for a node of an earlier version, nor in the node.
func KeepServed(runDir string, served []byte) error {
	if len(served) == 0 {
		return nil
	}
	name := filepath.Join(outsideDir(runDir), fileSaved)
	err := os.WriteFile(name+".new", served, 0o600)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EROFS) {
		return nil
	}
	if err == nil {
		err = os.Rename(name+".new", name)
	}
	if err != nil {
		return fmt.Errorf("keep the configuration that the daemon serves with: %w", err)
	}
	return nil
}

// SetDegraded keeps, for Degraded, why the server serves with another configuration
// than the one on disk; "" when it does not. The server calls it before Ready.
func (n *Node) SetDegraded(reason string) error {
	name := filepath.Join(nodeDir(n.RunDir), fileDegraded)
	var err error
	if reason == "" {
		if err = os.Remove(name); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	} else {
		err = os.WriteFile(name, []byte(reason), 0o600)
	}
	if err != nil {
		return fmt.Errorf("note whether the server is degraded: %w", err)
	}
	return nil
}

// Degraded returns the reason that SetDegraded got last in this node.
func (n *Node) Degraded() string {
	text, _ := os.ReadFile(filepath.Join(nodeDir(n.RunDir), fileDegraded))
	return strings.TrimSpace(string(text))
}
