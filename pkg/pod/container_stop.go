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
)

// killGrace is how long a killed container may take to end before the request
// gives up: only a process in an uninterruptible system call takes as long.
const killGrace = 30 * time.Second

// StopContainer sends the stop signal, and SIGKILL after the grace period (at
// once when it is 0), and returns once the exit status is recorded. Any number
// may run at the same time, with other grace periods. Idempotent; an unknown ID
// is fine.
func (r *Runtime) StopContainer(ctx context.Context, id string, grace time.Duration) error {
	c, err := r.State.Container(id)
	if errors.Is(err, state.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if c.State() == runtimeapi.ContainerState_CONTAINER_EXITED {
		return nil
	}
	if c.Allocated.Runtime == nil {
		// Made without a process (it could not have been started), or by a
		// creation that failed: nothing runs.
		return r.finish(c.ID, state.ContainerStatus{ExitCode: exitUnknown, FinishedAt: time.Now(), Reason: reasonError, Message: c.Status.StartError})
	}
	if grace > 0 && c.State() == runtimeapi.ContainerState_CONTAINER_RUNNING {
		if err := r.signal(ctx, c, c.StopSignal(), false); err != nil {
			return err
		}
		wait, cancel := context.WithTimeout(ctx, grace)
		err := r.ended(wait, c.ID)
		cancel()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("stop container %s: %w", c.ID, ctx.Err())
		}
	}
	if err := r.signal(ctx, c, syscall.SIGKILL, true); err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, killGrace)
	defer cancel()
	if err := r.ended(wait, c.ID); err != nil {
		return fmt.Errorf("stop container %s: it was killed and has not ended: %w", c.ID, err)
	}
	return nil
}

func (r *Runtime) signal(ctx context.Context, c state.Container, sig syscall.Signal, all bool) error {
	err := r.Executor.Signal(ctx, c.ID, *c.Allocated.Runtime, sig, all)
	if err != nil && !errors.Is(err, oci.ErrNotRunning) {
		return fmt.Errorf("stop container %s: %w", c.ID, err)
	}
	return nil
}
