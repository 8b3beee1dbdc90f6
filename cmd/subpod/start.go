package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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
	from int64 // where in the log this daemon's part begins
	done chan error
}

// startDaemon starts the daemon and waits until it accepts connections. It keeps running in a
// session of its own after this command exits, unless ctx ends before. The result is nil if
// another command has started the daemon at the same time.
func (a *app) startDaemon(ctx context.Context) (*ownDaemon, error) {
	cfg, err := a.flags.Load()
	if err != nil {
		return nil, err
	}
	args, err := a.flags.Args()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.Daemon.RunDir, 0o700); err != nil {
		return nil, fmt.Errorf("create the run directory of the daemon: %w", err)
	}
	for deadline := time.Now().Add(startTimeout); ; {
		d, err := launch(cfg, args)
		if err != nil {
			return nil, err
		}
		if err = d.await(ctx, cfg, deadline); err == nil {
			return d, nil
		}
		if !errors.Is(err, errOther) {
			return nil, err
		}
		if gone, err := awaitOther(ctx, cfg, deadline); !gone {
			return nil, err
		}
	}
}

// launch starts a daemon.
func launch(cfg *config.Config, args []string) (*ownDaemon, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	d := &ownDaemon{log: filepath.Join(cfg.Daemon.RunDir, cli.LogName), done: make(chan error, 1)}
	log, err := d.openLog(cfg)
	if err != nil {
		return nil, fmt.Errorf("open the daemon's log: %w", err)
	}
	defer log.Close()
	d.cmd = exec.Command(exe, append(slices.Clone(args), "daemon")...)
	d.cmd.Dir = "/"
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := d.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the daemon: %w", err)
	}
	go func() { d.done <- d.cmd.Wait() }()
	return d, nil
}

// openLog opens the log anew, unless a daemon runs that writes to it, or another command
// waits for what one that was refused has written.
func (d *ownDaemon) openLog(cfg *config.Config) (*os.File, error) {
	flags := os.O_CREATE | os.O_WRONLY | os.O_APPEND
	if rootless.Owner(cfg.Daemon.RunDir) == 0 {
		flags |= os.O_TRUNC
	}
	log, err := os.OpenFile(d.log, flags, 0o600)
	if err != nil {
		return nil, err
	}
	if st, err := log.Stat(); err == nil {
		d.from = st.Size()
	}
	return log, nil
}

// output returns what the daemon, and others since its start, have written to the log.
func (d *ownDaemon) output() ([]byte, error) {
	text, err := os.ReadFile(d.log)
	if int64(len(text)) >= d.from {
		text = text[d.from:]
	}
	return text, err
}

// errOther reports that the daemon has ended because another process has locked the run
// directory: another command has started a daemon at the same time, or one is ending.
var errOther = errors.New("another process has the run directory")

// await waits until the socket accepts connections. errOther.
func (d *ownDaemon) await(ctx context.Context, cfg *config.Config, deadline time.Time) error {
	for {
		if conn, err := net.Dial("unix", cfg.Daemon.Socket); err == nil {
			if owner := rootless.Owner(cfg.Daemon.RunDir); owner != 0 && owner != d.cmd.Process.Pid {
				d.stop() // else it would start once the other has ended
				err = errOther
			}
			return errors.Join(err, conn.Close())
		}
		select {
		case <-d.done:
			text, err := d.output()
			if bytes.Contains(text, heldText(cfg)) {
				return errOther
			}
			if err != nil {
				return fmt.Errorf("the daemon exited during its start: %w", err)
			}
			if why := missing(cfg); why != nil {
				return why
			}
			return fmt.Errorf("the daemon exited during its start:\n%s", bytes.TrimSpace(text))
		case <-ctx.Done():
			d.stop()
			return context.Cause(ctx)
		case <-time.After(3 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			d.stop()
			return fmt.Errorf("the daemon does not accept connections after %v; see its log %s", startTimeout, d.log)
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

// otherPause is the pause between two looks for a daemon that another process starts.
const otherPause = 20 * time.Millisecond

// awaitOther waits until the daemon that another process has started accepts connections, or
// until that process is gone: then a daemon can be started.
func awaitOther(ctx context.Context, cfg *config.Config, deadline time.Time) (gone bool, err error) {
	for time.Now().Before(deadline) {
		if conn, err := net.Dial("unix", cfg.Daemon.Socket); err == nil {
			return false, conn.Close()
		}
		select {
		case <-ctx.Done():
			return false, context.Cause(ctx)
		case <-time.After(otherPause):
		}
		if rootless.Owner(cfg.Daemon.RunDir) == 0 {
			return true, nil
		}
	}
	return false, errors.New("another daemon is starting and does not accept connections yet; try again")
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
