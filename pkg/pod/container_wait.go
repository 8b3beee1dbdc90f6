package pod

import (
	"context"
	"fmt"
	"syscall"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/oci"
	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/stats"
)

// WaitContainer returns the status of the container once it has exited; at once
// for one that has. state.ErrNotFound, ErrWrongState for one without a process.
func (r *Runtime) WaitContainer(ctx context.Context, id string) (state.ContainerStatus, error) {
	c, err := r.State.Container(id)
	if err != nil {
		return state.ContainerStatus{}, err
	}
	if err := r.ended(ctx, c.ID); err != nil {
		return state.ContainerStatus{}, err
	}
	if c, err = r.State.Container(c.ID); err != nil {
		return state.ContainerStatus{}, err
	}
	if c.State() != runtimeapi.ContainerState_CONTAINER_EXITED {
		return state.ContainerStatus{}, fmt.Errorf("%w: container %s is %s and nothing waits for its end", ErrWrongState, c.ID, c.StateWord())
	}
	return c.Status, nil
}

// Ending returns a function that waits for the end of the container as
// WaitContainer does, and that knows its status also when the container has been
// removed at once.
func (r *Runtime) Ending(id string) func(context.Context) (state.ContainerStatus, error) {
	r.mu.Lock()
	w := r.watches[id]
	r.mu.Unlock()
	return func(ctx context.Context) (state.ContainerStatus, error) {
		if w == nil {
			return r.WaitContainer(ctx, id)
		}
		select {
		case <-w.done:
			return w.status, nil
		case <-ctx.Done():
			return state.ContainerStatus{}, ctx.Err()
		case <-r.ctx.Done():
			return state.ContainerStatus{}, r.ctx.Err()
		}
	}
}

// SignalContainer sends a signal to the container's first process.
// ErrWrongState when it does not run, ErrInvalid for a signal that there is not.
func (r *Runtime) SignalContainer(ctx context.Context, id string, sig syscall.Signal) error {
	if sig < 1 || sig > 64 {
		return fmt.Errorf("%w: there is no signal %d", ErrInvalid, sig)
	}
	c, err := r.running(id)
	if err != nil {
		return err
	}
	if err := r.Executor.Signal(ctx, c.ID, *c.Allocated.Runtime, sig, false); err != nil {
		return fmt.Errorf("send signal %d to container %s: %w", sig, c.ID, err)
	}
	return nil
}

// Processes lists the processes of a running container. ErrWrongState.
func (r *Runtime) Processes(id string) ([]stats.Process, error) {
	c, err := r.running(id)
	if err != nil {
		return nil, err
	}
	return stats.Processes(c.Allocated.Runtime.Init), nil
}

// commandNotFound is what StartContainer says of a container that was made
// without a process.
func commandNotFound(c state.Container) error {
	return fmt.Errorf("%w: %s", oci.ErrCommandNotFound, c.Status.StartError)
}
