package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/subpod/subpod/pkg/proc"
)

// Exit is how a container ended.
type Exit struct {
	Code      int32 // 128 + signal when a signal ended it
	At        time.Time
	OOMKilled bool
	// Unknown: the monitor was killed before it could record the exit code. Code
	// is 137 then and At the time at which the end was noticed.
	Unknown bool
}

const unknownExitCode = 137

// How long conmon may take to write the exit file after init has ended, until
// what the container left behind, and then conmon itself, is killed.
const (
	leftoverGrace = time.Second
	conmonGrace   = 5 * time.Second
)

// Wait returns once the container's init has ended, also when that was long
// ago. It may be called any number of times and from any number of goroutines;
// it holds no thread and does not poll. It never hangs on conmon: when conmon
// was killed it goes on until init ends.
func (e *Executor) Wait(ctx context.Context, id string, c Container) (Exit, error) {
	if err := checkID(id); err != nil {
		return Exit{}, err
	}
	m := e.monitorOf(c)
	if x, ok, err := m.exit(id, c); ok || err != nil {
		return x, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	settled, init := m.settled(ctx, id, c), ended(ctx, c.Init)
	var err error
	select {
	case err = <-settled:
	case err = <-init:
		if err == nil {
			err = hurry(ctx, m, id, c, settled)
		}
		init = closed
	}
	if err != nil {
		return Exit{}, err
	}
	if x, ok, err := m.exit(id, c); ok || err != nil {
		return x, err
	}
	if err := <-init; err != nil {
		return Exit{}, err
	}
	e.log.Warn("the monitor ended before its container, exit code unknown", "container", id, "conmon", c.Conmon.PID)
	return Exit{Code: unknownExitCode, At: time.Now(), OOMKilled: c.oomKilled(), Unknown: true}, nil
}

// hurry waits until a container has settled after the end of init. A process that init
// left behind and that writes without end keeps the monitor reading, so it goes
// first. A monitor that still does not end with it is stuck and cannot be helped.
func hurry(ctx context.Context, m monitor, id string, c Container, settled <-chan error) error {
	after := func(d time.Duration, act func() error) (bool, error) {
		select {
		case err := <-settled:
			return true, err
		case <-time.After(d):
			return false, act()
		}
	}
	leftover := func() error { return ignoreGone(c.signalMembers(syscall.SIGKILL)) }
	if done, err := after(leftoverGrace, leftover); done || err != nil {
		return err
	}
	if done, err := after(conmonGrace, func() error { return m.giveUp(ctx, id, c) }); done || err != nil {
		return err
	}
	return <-settled
}

func (m conmon) settled(ctx context.Context, _ string, c Container) <-chan error {
	return ended(ctx, c.Conmon)
}

func (m conmon) giveUp(_ context.Context, _ string, c Container) error {
	m.e.log.Warn("conmon does not end after its container, killing it", "conmon", c.Conmon.PID)
	return ignoreGone(c.Conmon.Signal(syscall.SIGKILL))
}

// closed stands for a process that has ended.
var closed = func() <-chan error { c := make(chan error); close(c); return c }()

// ended delivers when the process has ended (nil) or ctx is done. The wait is
// in the poller and ends with ctx.
func ended(ctx context.Context, id proc.ID) <-chan error {
	if id.IsZero() {
		return closed
	}
	c := make(chan error, 1)
	go func() { c <- id.Wait(ctx) }()
	return c
}

// exit reads conmon's exit file, which is renamed into place complete.
func (m conmon) exit(id string, c Container) (x Exit, ok bool, err error) {
	file, err := os.Open(m.e.exitFile(id))
	if errors.Is(err, os.ErrNotExist) {
		return Exit{}, false, nil
	}
	if err != nil {
		return Exit{}, false, err
	}
	defer file.Close()
	fi, err := file.Stat()
	if err != nil {
		return Exit{}, false, err
	}
	b := make([]byte, 16)
	n, err := file.Read(b)
	if err != nil {
		return Exit{}, false, fmt.Errorf("read %s: %w", file.Name(), err)
	}
	code, err := strconv.ParseInt(strings.TrimSpace(string(b[:n])), 10, 32)
	if err != nil {
		return Exit{}, false, fmt.Errorf("exit file %s: %w", file.Name(), err)
	}
	x = Exit{Code: int32(code), At: fi.ModTime(), OOMKilled: c.oomKilled()}
	if code < 0 {
		x.Code, x.Unknown = unknownExitCode, true
	}
	return x, true, nil
}

// oomKilled: conmon leaves a file when the kernel reports an OOM kill in the
// container's cgroup.
func (c Container) oomKilled() bool {
	_, err := os.Stat(filepath.Join(c.Bundle, oomFile))
	return err == nil
}
