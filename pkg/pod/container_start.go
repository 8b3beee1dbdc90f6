package pod

import (
	"context"
	"errors"
	"fmt"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/state"
)

// ErrStart says that the container's process could not be started.
var ErrStart = errors.New("start failed")

// exitStartError is the exit code of a container that could not be started, as
// the kubelet knows it from the field.
const exitStartError = 128

// StartContainer starts a created container. When its process cannot be
// started the container has exited with the reason StartError. ErrWrongState,
// ErrStart.
func (r *Runtime) StartContainer(ctx context.Context, id string) error {
	c, err := r.State.Container(id)
	if err != nil {
		return err
	}
	unlockPod, err := r.pods.share(ctx, c.PodID)
	if err != nil {
		return err
	}
	defer unlockPod()
	p, err := r.State.Pod(c.PodID)
	if err != nil {
		return err
	}
	if p.Status.Phase != state.PodReady {
		return fmt.Errorf("%w: start container %s: its pod sandbox %s is not ready", ErrWrongState, c.ID, p.ID)
	}
	unlock, err := r.containers.alone(ctx, c.ID)
	if err != nil {
		return err
	}
	defer unlock()
	if c, err = r.State.Container(c.ID); err != nil {
		return err
	}
	if c.State() != runtimeapi.ContainerState_CONTAINER_CREATED || c.Status.Removing {
		return fmt.Errorf("%w: start container %s: it is %s", ErrWrongState, c.ID, c.StateWord())
	}
	now := time.Now()
	err = commandNotFound(c)
	if c.Allocated.Runtime != nil {
		err = r.Executor.Start(ctx, c.ID, *c.Allocated.Runtime)
	}
	if err != nil {
		return r.startFailed(ctx, c, now, err)
	}
	if _, err := r.State.UpdateContainer(c.ID, func(c *state.Container) error {
		c.Status.StartedAt = now
		if !c.Status.FinishedAt.IsZero() {
			c.Status.FinishedAt = later(c.Status.FinishedAt, now)
		}
		return nil
	}); err != nil {
		return err
	}
	r.emitContainer(c.ID, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
	return nil
}

// later keeps an end from lying before its beginning: the end of a container is
// the time of a file, whose clock is some milliseconds behind (time(7)).
func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// startFailed records the failure first, so that the watch, which sees the
// process end, does not write another reason.
func (r *Runtime) startFailed(ctx context.Context, c state.Container, now time.Time, cause error) error {
	recordErr := r.finish(c.ID, state.ContainerStatus{ExitCode: exitStartError, FinishedAt: now, Reason: reasonStartError, Message: cause.Error()})
	ctx, cancel := r.detached(ctx)
	defer cancel()
	if err := r.cleanContainer(ctx, c); err != nil {
		r.Log.Warn("a container that failed to start could not be cleaned up yet", "container", c.ID, "error", err)
	}
	return errors.Join(fmt.Errorf("%w: container %s: %w", ErrStart, c.ID, cause), recordErr)
}
