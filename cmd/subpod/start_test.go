package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/config"
	"github.com/subpod/subpod/rootless"
)

// TestAwaitOtherDaemon: a daemon that ends because another command has started one in
// the same run directory is no failure; the other one, which serves later, is waited for.
func TestAwaitOtherDaemon(t *testing.T) {
	dir := t.TempDir()
	cfg := config.Default()
	cfg.Daemon.RunDir, cfg.Daemon.Socket = dir, filepath.Join(dir, "s")
	lock, err := os.Create(filepath.Join(dir, "daemon.lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(lock, os.Getpid())
	// The text that a daemon would end with. Reset, for which this is the data directory of
	// another run directory, reports a lock in the same words, and touches nothing.
	_, _, held := rootless.Reset(t.Context(), filepath.Join(dir, "none"), dir, time.Second)
	if !errors.Is(held, rootless.ErrHeld) {
		t.Fatalf("Reset of a locked directory: %v", held)
	}
	d := &ownDaemon{log: filepath.Join(dir, "daemon.log"), done: make(chan error, 1)}
	if err := os.WriteFile(d.log, []byte("subpod: "+held.Error()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	d.done <- nil
	served := make(chan net.Listener, 1)
	time.AfterFunc(50*time.Millisecond, func() {
		l, err := net.Listen("unix", cfg.Daemon.Socket)
		if err != nil {
			t.Error(err)
		}
		served <- l
	})
	own, err := d.await(cfg, true)
	if own != nil || err != nil {
		t.Errorf("await: %v, %v; the daemon said: %v", own, err, held)
	}
	if l := <-served; l != nil {
		l.Close()
	}
}
