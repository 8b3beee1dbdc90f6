package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/config"
)

// startTimeout is how long a daemon may take until it serves.
const startTimeout = 30 * time.Second

// ownDaemon is a daemon that a command has started.
type ownDaemon struct {
	cmd  *exec.Cmd
	log  string
	done chan error
}

// startDaemon starts the daemon and waits until its socket is there. One in the
// background goes on when the command and its session have ended. ownDaemon is
// nil when another command was faster.
func (a *app) startDaemon(background bool) (*ownDaemon, error) {
	cfg, err := a.flags.Load()
	if err != nil {
		return nil, err
	}
	args, err := a.flags.Args()
	if err != nil {
		return nil, err
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	if err := os.MkdirAll(cfg.Daemon.RunDir, 0o700); err != nil {
		return nil, fmt.Errorf("make the daemon's run directory: %w", err)
	}
	d := &ownDaemon{log: filepath.Join(cfg.Daemon.RunDir, "daemon.log"), done: make(chan error, 1)}
	log, err := os.OpenFile(d.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the daemon's log: %w", err)
	}
	defer log.Close()
	d.cmd = exec.Command(exe, append(args, "daemon")...)
	d.cmd.Dir = "/"
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := d.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the daemon: %w", err)
	}
	go func() { d.done <- d.cmd.Wait() }()
	return d.await(cfg, background)
}

// await waits until the socket answers.
func (d *ownDaemon) await(cfg *config.Config, background bool) (*ownDaemon, error) {
	deadline := time.Now().Add(startTimeout)
	for {
		if conn, err := net.Dial("unix", cfg.Daemon.Socket); err == nil {
			conn.Close()
			return d, nil
		}
		select {
		case <-d.done:
			text, err := os.ReadFile(d.log)
			if bytes.Contains(text, []byte("run directory is in use")) {
				// Another command has started one at the same moment.
				return nil, awaitOther(cfg, deadline)
			}
			if err != nil {
				return nil, fmt.Errorf("the daemon ended at its start: %w", err)
			}
			return nil, fmt.Errorf("the daemon ended at its start:\n%s", bytes.TrimSpace(text))
		case <-time.After(3 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			d.stop()
			return nil, fmt.Errorf("the daemon does not serve after %v; its log is %s", startTimeout, d.log)
		}
	}
}

func awaitOther(cfg *config.Config, deadline time.Time) error {
	for time.Now().Before(deadline) {
		if conn, err := net.Dial("unix", cfg.Daemon.Socket); err == nil {
			return conn.Close()
		}
		time.Sleep(10 * time.Millisecond)
	}
	return errors.New("another daemon is being started and does not serve yet")
}

// stop ends the daemon, and with it everything in the node.
func (d *ownDaemon) stop() {
	_ = d.cmd.Process.Signal(unix.SIGTERM)
	select {
	case <-d.done:
	case <-time.After(startTimeout):
		_ = d.cmd.Process.Kill()
		<-d.done
	}
}
