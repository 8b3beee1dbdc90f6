package cli

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/tests/node"
	"github.com/subpod/subpod/tests/registry"
)

// endDaemon ends the daemon that commands have started, and waits for its end.
func endDaemon(t *testing.T, n *node.Node) {
	t.Helper()
	text, err := os.ReadFile(lockOf(n))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	_ = unix.Kill(pid, unix.SIGTERM)
	noDaemon(t, n)
}

func lockOf(n *node.Node) string { return filepath.Join(filepath.Dir(n.Socket), "daemon.lock") }

// noDaemon waits until no daemon runs.
func noDaemon(t *testing.T, n *node.Node) {
	t.Helper()
	node.Eventually(t, "no daemon runs", func() error {
		f, err := os.Open(lockOf(n))
		if os.IsNotExist(err) {
			return nil
		}
		if err != nil {
			return err
		}
		defer f.Close()
		if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
			return fmt.Errorf("the run directory is locked: %w", err)
		}
		return nil
	})
}

// TestEphemeralInterrupted: the daemon of "run --ephemeral-node" ends with the command, also
// when that is cancelled while it pulls.
func TestEphemeralInterrupted(t *testing.T) {
	n := node.Prepare(t, node.Options{Config: bridge})
	silent, err := net.Listen("tcp", "127.0.0.1:0") // a registry that never answers
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for _, sig := range []unix.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP} {
		var out bytes.Buffer
		cmd := n.Command(t.Context(), node.Path(t, node.Subpod), "run", "--rm", "--ephemeral-node", silent.Addr().String()+"/image")
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		node.Eventually(t, "the daemon serves", func() error {
			_, err := n.Subpod("ps")
			return err
		})
		time.Sleep(200 * time.Millisecond) // it pulls
		_ = cmd.Process.Signal(sig)
		if err := cmd.Wait(); err == nil {
			t.Errorf("%v: the command has succeeded:\n%s", sig, out.String())
		}
		if code := cmd.ProcessState.ExitCode(); code != 128+int(sig) {
			t.Errorf("%v: exit code %d:\n%s", sig, code, out.String())
		}
		noDaemon(t, n)
	}
}

// TestEphemeralSignalled: a signal that comes as soon as there is a container is the container's,
// also while the command is still about to write who that is.
func TestEphemeralSignalled(t *testing.T) {
	n := node.Prepare(t, node.Options{Config: bridge, Registries: registry.Conf(node.Registry(t))})
	n.MustSubpod("pull", "-q", "busybox")
	endDaemon(t, n)
	pidFile := filepath.Join(t.TempDir(), "pid")
	if err := unix.Mkfifo(pidFile, 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd := n.Command(t.Context(), node.Path(t, node.Subpod), "run", "--rm", "--ephemeral-node", "--pidfile", pidFile, "--name", "c",
		"busybox", "sh", "-c", "trap 'exit 7' TERM; touch /tmp/begun; while :; do sleep 0.1; done")
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	node.Eventually(t, "the container runs", func() error {
		_, err := n.Subpod("exec", "c", "test", "-e", "/tmp/begun")
		return err
	})
	time.Sleep(200 * time.Millisecond) // it opens the FIFO
	_ = cmd.Process.Signal(unix.SIGTERM)
	time.Sleep(time.Second)
	reader, err := os.OpenFile(pidFile, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	ended := time.AfterFunc(30*time.Second, func() { _ = cmd.Process.Signal(unix.SIGTERM) })
	_ = cmd.Wait()
	if first, code := ended.Stop(), cmd.ProcessState.ExitCode(); code != 7 || !first {
		t.Errorf("exit code %d, of the first signal: %v:\n%s", code, first, out.String())
	}
	noDaemon(t, n)
}

// TestFirstCommands: of several commands that come while there is no daemon one starts it, and
// all have it.
func TestFirstCommands(t *testing.T) {
	n := node.Prepare(t, node.Options{Config: bridge, Registries: registry.Conf(node.Registry(t))})
	n.MustSubpod("pull", "-q", "busybox")
	for range 3 {
		endDaemon(t, n)
		var all sync.WaitGroup
		for i := range 20 {
			all.Go(func() {
				time.Sleep(time.Duration(i) * 5 * time.Millisecond)
				if out, err := n.Subpod("volume", "create", "--ignore", "v"); err != nil {
					t.Errorf("command %d: %v: %s", i, err, out)
				}
			})
		}
		all.Wait()
	}
	endDaemon(t, n)
}

// TestStartAfterOther: a command that finds the run directory in use, by a daemon that is
// ending or by "system reset", starts a daemon as soon as it is free.
func TestStartAfterOther(t *testing.T) {
	n := node.Prepare(t, node.Options{Config: bridge})
	if err := os.MkdirAll(filepath.Dir(n.Socket), 0o700); err != nil {
		t.Fatal(err)
	}
	lock, err := os.Create(lockOf(n))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(lock, os.Getpid())
	time.AfterFunc(time.Second, func() { lock.Close() })
	begin := time.Now()
	if out, err := n.Subpod("volume", "create", "v"); err != nil || time.Since(begin) > time.Minute {
		t.Errorf("%v after %v: %s", err, time.Since(begin), out)
	}
	endDaemon(t, n)
}

// TestStopWithinStart: a daemon that is stopped ends soon, however far its start has come. What
// stops it may have little patience, as a cancelled CI job.
func TestStopWithinStart(t *testing.T) {
	n := node.Prepare(t, node.Options{Config: bridge})
	var slow []string // a busy machine may have one or two
	for delay := time.Duration(0); delay < 400*time.Millisecond; delay += 40 * time.Millisecond {
		var out bytes.Buffer
		cmd := n.Command(t.Context(), node.Path(t, node.Subpod), "daemon")
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		time.Sleep(delay)
		begin := time.Now()
		_ = cmd.Process.Signal(unix.SIGTERM)
		select {
		case <-ended:
			if took := time.Since(begin); took > 7*time.Second {
				slow = append(slow, fmt.Sprintf("after %v it took %v to stop it:\n%s", delay, took, out.String()))
			}
		case <-time.After(20 * time.Second):
			_ = cmd.Process.Kill()
			t.Fatalf("a daemon that was stopped after %v goes on:\n%s", delay, out.String())
		}
	}
	if len(slow) > 2 {
		t.Errorf("%d stops took long: %s", len(slow), strings.Join(slow, "\n"))
	}
}

// TestStopIsNoFailure: a server that is stopped while it starts is not logged as one that has
// failed.
func TestStopIsNoFailure(t *testing.T) {
	dir := t.TempDir()
	crun, called := filepath.Join(dir, "crun"), filepath.Join(dir, "called")
	if err := os.WriteFile(crun, []byte("#!/bin/sh\n: > "+called+"\nexec sleep 60\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	n := node.Prepare(t, node.Options{Config: bridge + "[runtime.handlers.crun]\npath = \"" + crun + "\"\n"})
	var out bytes.Buffer
	cmd := n.Command(t.Context(), node.Path(t, node.Subpod), "daemon")
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	node.Eventually(t, "the server has called the runtime", func() error {
		_, err := os.Stat(called)
		return err
	})
	_ = cmd.Process.Signal(unix.SIGTERM)
	if err := cmd.Wait(); err != nil || strings.Contains(out.String(), "level=ERROR") {
		t.Errorf("%v:\n%s", err, out.String())
	}
}
