package pod

import (
	"context"
	"errors"
	"fmt"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/state"
)

// WaitContainer returns the status of the container once it has exited: of its run with
// the number attempt, of the present one for nil; at once for one that has.
// state.ErrNotFound, also for a run that others have followed of which nothing is known;
// errdefs.ErrFailedPrecondition for one without a process, or that has not begun.
func (m *Manager) WaitContainer(ctx context.Context, id string, attempt *uint32) (state.ContainerStatus, error) {
	c, err := m.State.FindContainer(id)
	if err != nil {
		return state.ContainerStatus{}, err
	}
	for {
		if w := m.exits.watchOf(c.ID); w != nil && (attempt == nil || w.attempt == *attempt) {
			// Not from the record, which may say by then that it runs again.
			err := w.wait(ctx, m.ctx)
			if errors.Is(err, errDropped) {
				continue
			}
			return w.status, err
		}
		if c, err = m.State.Container(c.ID); err != nil {
			return state.ContainerStatus{}, err
		}
		switch {
		case attempt != nil && c.Attempt() != *attempt:
			return otherRun(c, *attempt)
		case c.State() == runtimeapi.ContainerState_CONTAINER_EXITED:
			return c.Status, nil
		case m.exits.ended(c.ID):
			return state.ContainerStatus{}, wrongState("container %s is %s and has no process to wait for", c.ID, c.StateWord())
		}
	}
}

// otherRun returns how a run of the container ended that is not the present one.
func otherRun(c state.Container, attempt uint32) (state.ContainerStatus, error) {
	for _, end := range c.Ended {
		if end.Attempt == attempt {
			return state.ContainerStatus{ExitCode: end.ExitCode, Reason: end.Reason, FinishedAt: end.FinishedAt}, nil
		}
	}
	if attempt > c.Attempt() {
		return state.ContainerStatus{}, wrongState("run %d of container %s has not begun", attempt, c.ID)
	}
	return state.ContainerStatus{}, fmt.Errorf("%w: how run %d of container %s ended is not known any more; it is at run %d", state.ErrNotFound, attempt, c.ID, c.Attempt())
}

// ExitOf returns a function that waits for the exit of the container as
// WaitContainer does, and that knows its status also when the container has been
// removed at once.
func (m *Manager) ExitOf(id string) func(context.Context) (state.ContainerStatus, error) {
	w := m.exits.watchOf(id)
	return func(ctx context.Context) (state.ContainerStatus, error) {
		if w == nil {
			return m.WaitContainer(ctx, id, nil)
		}
		if err := w.wait(ctx, m.ctx); err != nil {
			return state.ContainerStatus{}, err
		}
		return w.status, nil
	}
}
