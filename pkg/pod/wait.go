package pod

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/state"
)

// WaitContainer returns the status of the container once it has exited; at once for
// one that has. state.ErrNotFound, errdefs.ErrFailedPrecondition for one without a
// process.
func (m *Manager) WaitContainer(ctx context.Context, id string) (state.ContainerStatus, error) {
	c, err := m.State.FindContainer(id)
	if err != nil {
		return state.ContainerStatus{}, err
	}
	if w := m.exits.watchOf(c.ID); w != nil {
		// Not from the record, which may say by now that it runs again.
		err := w.wait(ctx, m.ctx)
		if err != nil {
			return state.ContainerStatus{}, err
		}
		return w.status, nil
	}
	if c, err = m.State.Container(c.ID); err != nil {
		return state.ContainerStatus{}, err
	}
	if c.State() != runtimeapi.ContainerState_CONTAINER_EXITED {
		return state.ContainerStatus{}, wrongState("container %s is %s and has no process to wait for", c.ID, c.StateWord())
	}
	return c.Status, nil
}

// ExitOf returns a function that waits for the exit of the container as
// WaitContainer does, and that knows its status also when the container has been
// removed at once.
func (m *Manager) ExitOf(id string) func(context.Context) (state.ContainerStatus, error) {
	w := m.exits.watchOf(id)
	return func(ctx context.Context) (state.ContainerStatus, error) {
		if w == nil {
			return m.WaitContainer(ctx, id)
		}
		if err := w.wait(ctx, m.ctx); err != nil {
			return state.ContainerStatus{}, err
		}
		return w.status, nil
	}
}
