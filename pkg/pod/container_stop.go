package pod

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/oci"
	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/trace"
)

// killTimeout is how long a killed container may take to end before the request
// fails: only a process in an uninterruptible system call takes as long.
const killTimeout = 30 * time.Second

// StopContainer sends the stop signal, and SIGKILL after the grace period (at once
// when it is 0), and returns once the exit status is recorded. It takes no lock: any
// number may run at the same time, with other grace periods. It is not restarted: that
// is recorded before the first signal. Idempotent; an unknown ID is fine.
func (m *Manager) StopContainer(ctx context.Context, id string, grace time.Duration) error {
	c, err := m.State.FindContainer(id)
	if err != nil {
		return ignoreNotFound(err)
	}
	if err := m.markStopped(ctx, c); err != nil {
		return err
	}
	err = m.endContainer(ctx, c.ID, grace, always)
	m.Changed(c.PodID)
	return err
}

// always is when a stop that somebody has asked for is due.
func always() bool { return true }

// endContainer is StopContainer without a word on whether it is restarted. due is asked once
// it is known which run would be ended: one that begins later is not.
func (b *base) endContainer(ctx context.Context, id string, grace time.Duration, due func() bool) error {
	c, err := b.State.FindContainer(id)
	if err != nil {
		return ignoreNotFound(err)
	}
	// The exit that is waited for is that of the run which is signalled: one that ends at
	// once may be restarted before the wait begins.
	run := b.exits.watchOf(c.ID)
	if c, err = b.State.Container(c.ID); err != nil {
		return ignoreNotFound(err)
	}
	if c.State() == runtimeapi.ContainerState_CONTAINER_EXITED && b.exits.ended(c.ID) || !due() {
		return nil
	}
	// One with an exit status that is still watched has ended just now, and its event
	// is not published yet; or its start failed and its process could not be killed.
	if c.Allocated.Runtime == nil {
		return b.stopWithoutProcess(ctx, c.ID, due)
	}
	if b.Host.Cgroup.Frozen(c.Allocated.Cgroup) { // it could not handle the signal
		if err := b.Host.Cgroup.Freeze(ctx, c.Allocated.Cgroup, false); err != nil {
			b.Log.Warn("a paused container is killed, since it cannot be resumed", "container", c.ID, "error", err)
		}
	}
	if grace > 0 && c.State() == runtimeapi.ContainerState_CONTAINER_RUNNING {
		if err := b.signal(ctx, c, c.StopSignal(), false); err != nil {
			return err
		}
		_, step := trace.Start(ctx, "wait for its end")
		err := b.waitExit(ctx, run, grace)
		step.End(nil) // to be over is no failure
		if err == nil {
			return nil
		}
		if ctx.Err() != nil || b.ctx.Err() != nil { // the grace period is not over
			return fmt.Errorf("stop container %s: %w", c.ID, err)
		}
	}
	if err := b.signal(ctx, c, syscall.SIGKILL, true); err != nil {
		return err
	}
	if err := trace.Do(ctx, "wait for the killed", func() error { return b.waitExit(ctx, run, killTimeout) }); err != nil {
		return fmt.Errorf("stop container %s: it was killed and has not ended: %w", c.ID, err)
	}
	return nil
}

// waitExit returns once the exit of the container is recorded and published; at once for
// nil, of one that is not watched.
func (b *base) waitExit(ctx context.Context, run *watch, timeout time.Duration) error {
	if run == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return ignoreDropped(run.wait(ctx, b.ctx))
}

// stopWithoutProcess ends a container that has no process: its command could not
// have been started, or its creation failed. One that is being created is waited for.
func (b *base) stopWithoutProcess(ctx context.Context, id string, due func() bool) error {
	held, err := b.container(ctx, id, exclusive)
	if err != nil {
		return ignoreNotFound(err)
	}
	if held.Allocated.Runtime != nil {
		held.unlock()
		return b.endContainer(ctx, id, 0, due)
	}
	defer held.unlock()
	if !due() {
		return nil
	}
	return b.exits.record(held.ID, state.ContainerStatus{ExitCode: exitUnknown, FinishedAt: time.Now(), Reason: reasonError, Message: held.Status.StartError})
}

func (b *base) signal(ctx context.Context, c state.Container, sig syscall.Signal, all bool) error {
	err := b.Processes.Signal(ctx, c.ID, *c.Allocated.Runtime, sig, all)
	if err != nil && !errors.Is(err, oci.ErrNotRunning) {
		return fmt.Errorf("stop container %s: %w", c.ID, err)
	}
	return nil
}
