package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/cmd/internal/cli"
	"github.com/subpod/subpod/cmd/internal/doctor"
	"github.com/subpod/subpod/pkg/config"
	"github.com/subpod/subpod/rootless"
)

// startTimeout bounds the start of a daemon until it serves, and its stop: as long as
// systemd gives a service, since a slow machine may need more than half a minute.
const startTimeout = 90 * time.Second

// ownDaemon is a daemon that a command has started.
type ownDaemon struct {
	cmd  *exec.Cmd
	log  string
	done chan error
}

// startDaemon starts the daemon and waits until it accepts connections. It keeps
// running in a session of its own after this command exits. The result is nil if
// another command has started the daemon at the same time.
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
		return nil, fmt.Errorf("create the run directory of the daemon: %w", err)
	}
	d := &ownDaemon{log: filepath.Join(cfg.Daemon.RunDir, cli.LogName), done: make(chan error, 1)}
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

// await waits until the socket accepts connections.
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
			if bytes.Contains(text, heldText(cfg)) {
				// Another command has started a daemon at the same time.
				return nil, awaitOther(cfg, deadline)
			}
			if err != nil {
				return nil, fmt.Errorf("the daemon exited during its start: %w", err)
			}
			if why := missing(cfg); why != nil {
				return nil, why
			}
			return nil, fmt.Errorf("the daemon exited during its start:\n%s", bytes.TrimSpace(text))
		case <-time.After(3 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			d.stop()
			return nil, fmt.Errorf("the daemon does not accept connections after %v; see its log %s", startTimeout, d.log)
		}
	}
}

// missing returns what the host lacks for a daemon, with the commands that mend it; nil
// when it lacks nothing. It is asked once a start has failed.
func missing(cfg *config.Config) error {
	server, err := serverPath()
	if err != nil {
		return err
	}
	var text strings.Builder
	for _, r := range doctor.Run(doctor.ThisHost(cfg, os.Getenv, server)) {
		if r.Level != doctor.Error {
			continue
		}
		fmt.Fprintf(&text, "\n%s", r.What)
		for line := range strings.Lines(r.Fix) {
			fmt.Fprintf(&text, "\n    %s", strings.TrimRight(line, "\n"))
		}
	}
	if text.Len() == 0 {
		return nil
	}
	return fmt.Errorf("the daemon cannot start:%s\n\"subpod doctor\" shows this and more", text.String())
}

// heldText is what a daemon reports when another process has locked the run directory.
func heldText(cfg *config.Config) []byte {
	return fmt.Appendf(nil, "%v: %s is locked ", rootless.ErrHeld, cfg.Daemon.RunDir)
}

func awaitOther(cfg *config.Config, deadline time.Time) error {
	for time.Now().Before(deadline) {
		if conn, err := net.Dial("unix", cfg.Daemon.Socket); err == nil {
			return conn.Close()
		}
		time.Sleep(10 * time.Millisecond)
	}
	return errors.New("another daemon is starting and does not accept connections yet; try again")
}

// stop stops the daemon, and with it everything in the node.
func (d *ownDaemon) stop() {
	_ = d.cmd.Process.Signal(unix.SIGTERM)
	select {
	case <-d.done:
	case <-time.After(startTimeout):
		_ = d.cmd.Process.Kill()
		<-d.done
	}
}
