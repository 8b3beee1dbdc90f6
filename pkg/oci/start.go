package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Start lets a created container's init execute its command and returns once
// it has done so (or has ended: a command that cannot be executed shows in the
// log and as an exit code). A second Start fails with the runtime's words;
// ErrNotRunning when init is gone.
func (e *Executor) Start(ctx context.Context, id string, f Facts) error {
	rt, err := e.handler(f.Handler)
	if err != nil {
		return err
	}
	if err := checkID(id); err != nil {
		return err
	}
	if !f.Init.Alive() {
		return fmt.Errorf("start container %s: %w", id, ErrNotRunning)
	}
	done := false
	if rt.feat.FifoStart && !f.PlainStart {
		if done, err = openGate(filepath.Join(rt.stateDir(id), "exec.fifo")); err != nil {
			return fmt.Errorf("start container %s: %w", id, err)
		}
	}
	if !done {
		if err := rt.call(ctx, "start", id); err != nil {
			return err
		}
	}
	return awaitExec(ctx, f)
}

// openGate does what "crun start" does to a container without poststart hooks:
// init waits for a byte from exec.fifo, and the missing fifo marks the
// container as running. done is false where there is no such fifo.
func openGate(path string) (done bool, err error) {
	fi, err := os.Lstat(path)
	if err != nil || fi.Mode().Type() != os.ModeNamedPipe {
		return false, nil
	}
	fifo, err := os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ENXIO) { // no reader: init is gone
		return false, ErrNotRunning
	}
	if err != nil {
		return false, err
	}
	defer fifo.Close()
	if err := os.Remove(path); err != nil {
		return false, err
	}
	_, err = fifo.Write([]byte{0})
	return err == nil, err
}

// Started reports whether init executes the container's command, or has ended:
// also what a server finds out that died between a start and its record.
func (f Facts) Started() bool {
	now, err := imageOf(f.Init.PID)
	return err != nil || now != f.Before || !f.Init.Alive()
}

// awaitExec returns when the container's command has been executed. Until then
// an exec into the container can fail. The kernel does not announce execve(2),
// but it follows within a millisecond unless there are startContainer hooks.
func awaitExec(ctx context.Context, f Facts) error {
	begin, pause := time.Now(), 100*time.Microsecond
	for !f.Started() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the container's command to be executed: %w", context.Cause(ctx))
		case <-time.After(pause):
		}
		if time.Since(begin) > 5*time.Millisecond {
			pause = min(2*pause, 5*time.Millisecond)
		}
	}
	return nil
}

// running fails with ErrNotRunning unless the container was started and its
// init lives.
func (e *Executor) running(ctx context.Context, rt *runtime, id string, f Facts) error {
	if !f.Init.Alive() {
		return fmt.Errorf("container %s: %w", id, ErrNotRunning)
	}
	if f.Started() {
		return nil
	}
	if _, err := os.Lstat(filepath.Join(rt.stateDir(id), "exec.fifo")); err == nil {
		return fmt.Errorf("container %s is not started: %w", id, ErrNotRunning)
	}
	return awaitExec(ctx, f) // a start is under way
}
