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
	deadline := time.Now().Add(time.Minute)
	if err := d.await(t.Context(), cfg, deadline); !errors.Is(err, errOther) {
		t.Errorf("await: %v; the daemon said: %v", err, held)
	}
	if gone, err := awaitOther(t.Context(), cfg, deadline); gone || err != nil {
		t.Errorf("awaitOther: %v, %v", gone, err)
	}
	if l := <-served; l != nil {
		l.Close()
	}
	// One that was ending, or did not come to serve, is not waited for.
	time.AfterFunc(50*time.Millisecond, func() { lock.Close() })
	if gone, err := awaitOther(t.Context(), cfg, deadline); !gone || err != nil {
		t.Errorf("awaitOther without another daemon: %v, %v", gone, err)
	}
}

// TestDaemonLog: what a daemon has written is there for the command that waits for it, also
// when a third one starts another daemon meanwhile.
func TestDaemonLog(t *testing.T) {
	dir := t.TempDir()
	cfg := config.Default()
	cfg.Daemon.RunDir = dir
	open := func() *ownDaemon {
		t.Helper()
		d := &ownDaemon{log: filepath.Join(dir, "daemon.log")}
		f, err := d.openLog(cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString("written\n"); err != nil {
			t.Fatal(err)
		}
		return d
	}
	open()
	lock, err := os.Create(filepath.Join(dir, "daemon.lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	fmt.Fprintln(lock, os.Getpid())
	second := open()
	open()
	if text, err := second.output(); err != nil || string(text) != "written\nwritten\n" {
		t.Errorf("%q, %v", text, err)
	}
	lock.Close()
	last := open()
	if text, err := os.ReadFile(last.log); err != nil || string(text) != "written\n" {
		t.Errorf("without a daemon the log is not begun anew: %q, %v", text, err)
	}
}
