package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/proc"
)

// Start lets a created container's init execute its command and returns once
// it has done so, or has ended. A second Start fails with the runtime's error;
// ErrNotRunning when init is gone; ErrCommandNotFound, ErrCommandNotExecutable or
// *RuntimeError when the kernel does not execute the command: the container is then not
// started, or has ended.
func (e *Executor) Start(ctx context.Context, id string, c Container) error {
	rt, err := e.handler(c.Handler)
	if err != nil {
		return err
	}
	if err := checkID(id); err != nil {
		return err
	}
	if !c.Init.Alive() {
		return fmt.Errorf("start container %s: %w", id, ErrNotRunning)
	}
	doubt, err := c.checkProgram(ctx, c.Program)
	if err != nil {
		return fmt.Errorf("start container %s: %w", id, err)
	}
	done := false
	if rt.feat.FifoStart && !c.PlainStart {
		if done, err = openGate(filepath.Join(rt.stateDir(id), "exec.fifo")); err != nil {
			return fmt.Errorf("start container %s: %w", id, err)
		}
	}
	if !done {
		if err := rt.call(ctx, "start", id); err != nil {
			return commandError(err)
		}
	}
	if seen, err := awaitExec(ctx, c.moment); err != nil || seen {
		return err
	}
	return commandError(e.execFailed(ctx, rt, id, c, doubt))
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
	// Were this process to end here, init would find the fifo without a writer
	// and read it again and again: see FinishStart.
	if _, err := fifo.Write([]byte{0}); err != nil {
		return false, err
	}
	return true, os.Remove(path)
}

// FinishStart ends a Start whose server died in it, and reports whether the
// container's command has been executed now. It has not when nobody has called
// Start, or when init has ended before.
func (e *Executor) FinishStart(ctx context.Context, id string, c Container) (executed bool, err error) {
	rt, err := e.handler(c.Handler)
	if err != nil {
		return false, err
	}
	if err := checkID(id); err != nil {
		return false, err
	}
	gate := filepath.Join(rt.stateDir(id), "exec.fifo")
	_, statErr := os.Lstat(gate)
	switch {
	case statErr != nil:
		return c.Started(), nil
	case !c.Init.Alive():
		// Init ended with the runtime's own exit code, or it ended by itself so
		// soon that the server could not remove the fifo any more.
		x, ok, err := e.monitorOf(c).exit(id, c)
		return ok && !x.Unknown && x.Code != 1 && x.Code < 128, err
	case c.Started():
		return true, removeFile(gate)
	case !spins(c.Init.PID):
		return false, nil
	}
	if err := c.frozen(ctx, func() error { _, err := openGate(gate); return err }); err != nil {
		return false, fmt.Errorf("finish the start of container %s: %w", id, err)
	}
	_, err = awaitExec(ctx, c.moment)
	return true, err
}

// spins reports whether a process runs instead of sleeping. crun's init sleeps
// until somebody opens the fifo, and from then on reads it without a pause.
func spins(pid int) bool {
	for range 3 {
		if !running(pid) {
			return false
		}
		time.Sleep(time.Millisecond)
	}
	return true
}

// frozen runs do while init is stopped: an init that spins takes a fifo that has
// a writer again but no byte yet for an error.
func (c Container) frozen(ctx context.Context, do func() error) error {
	if err := c.Init.Signal(unix.SIGSTOP); err != nil {
		return err
	}
	for running(c.Init.PID) {
		select {
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), c.Init.Signal(unix.SIGCONT))
		case <-time.After(time.Millisecond):
		}
	}
	return errors.Join(do(), c.Init.Signal(unix.SIGCONT))
}

// running reports whether a process runs instead of sleeping or being stopped.
func running(pid int) bool {
	st, err := proc.ReadStat(pid)
	return err == nil && st.State == 'R'
}

// A moment is how far init has come on its way to the container's command.
type moment int

const (
	waits    moment = iota // it is what it was before
	between                // within execve(2), or about to end: it has no stack
	executes               // it is the container's command
	over                   // it has ended
)

func (c Container) moment() moment {
	now, err := imageOf(c.Init.PID)
	switch {
	case err != nil || !c.Init.Alive():
		return over
	case now == c.Before:
		return waits
	case now.Stack == 0 && c.Before.Stack != 0:
		return between
	}
	return executes
}

// Started reports whether init executes the container's command, or has ended:
// also what a server finds out that died between a start and its record.
func (c Container) Started() bool {
	now, err := imageOf(c.Init.PID)
	return err != nil || now != c.Before || !c.Init.Alive()
}

// awaitExec returns when the container's command has been executed. Until then
// an exec into the container can fail. The kernel does not announce execve(2),
// but it follows within a millisecond unless there are startContainer hooks, and takes as
// long as the file system of the command does. seen is false when init has ended, so that
// it is not known whether it came to that.
func awaitExec(ctx context.Context, look func() moment) (seen bool, err error) {
	begin, pause := time.Now(), 100*time.Microsecond
	for {
		switch look() {
		case executes:
			return true, nil
		case over:
			return false, nil
		}
		select {
		case <-ctx.Done():
			return false, fmt.Errorf("wait for the container's command to be executed: %w", context.Cause(ctx))
		case <-time.After(pause):
		}
		if time.Since(begin) > 5*time.Millisecond {
			pause = min(2*pause, 5*time.Millisecond)
		}
	}
}

// running fails with ErrNotRunning unless the container was started and its
// init lives.
func (rt *runtime) running(ctx context.Context, id string, c Container) error {
	if !c.Init.Alive() {
		return fmt.Errorf("container %s: %w", id, ErrNotRunning)
	}
	if c.Started() {
		return nil
	}
	if _, err := os.Lstat(filepath.Join(rt.stateDir(id), "exec.fifo")); err == nil {
		return fmt.Errorf("container %s is not started: %w", id, ErrNotRunning)
	}
	_, err := awaitExec(ctx, c.moment) // a start is under way
	return err
}
