package pod

import (
	"context"
	"errors"
	"fmt"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/oci"
	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/trace"
)

// ErrStart says that the container's process could not be started.
var ErrStart = errors.New("start failed")

// StartContainer starts a created container. When its process cannot be started the
// container has exited with the reason StartError. errdefs.ErrFailedPrecondition,
// ErrStart, errdefs.ErrAborted when another request stops the pod sandbox or removes
// the container meanwhile.
func (m *Manager) StartContainer(ctx context.Context, id string) error {
	c, err := m.State.FindContainer(id)
	if err != nil {
		return err
	}
	p, err := m.pod(ctx, c.PodID, shared)
	if err != nil {
		return err
	}
	defer p.unlock()
	if p.Status.Phase != state.PodReady {
		return wrongState("start container %s: its pod sandbox %s is not ready", c.ID, p.ID)
	}
	held, err := m.container(p.ctx, c.ID, exclusive)
	if err != nil {
		return explain(p.ctx, err)
	}
	defer held.unlock()
	if held.State() != runtimeapi.ContainerState_CONTAINER_CREATED || held.Status.Removing {
		return wrongState("start container %s: it is %s", held.ID, held.StateWord())
	}
	return m.startHeld(ctx, held)
}

// startHeld starts a created container, whose lock the caller holds.
func (b *base) startHeld(ctx context.Context, held *heldContainer) error {
	// A process that ends at once has been started first, for the record and for
	// subscribers.
	defer b.exits.starting(held.ID)()
	now := time.Now()
	var err error
	if held.Allocated.Runtime == nil {
		err = oci.CommandError(held.Status.StartError)
	} else if err = b.notices.ask(held.ctx, ContainerStart, held.Container); err == nil {
		err = trace.Do(held.ctx, "start init", func() error { return b.Processes.Start(held.ctx, held.ID, *held.Allocated.Runtime) })
	}
	if err != nil {
		return b.startFailed(ctx, held.Container, now, explain(held.ctx, err))
	}
	started := func() error { return held.update(func(c *state.Container) { c.Status.StartedAt = now }) }
	if err := trace.Do(held.ctx, "record", started); err != nil {
		// Nobody would know that it runs.
		return b.startFailed(ctx, held.Container, now, fmt.Errorf("its start could not be recorded, so it is ended: %w", err))
	}
	b.events.container(held.Container, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
	b.notices.container(ctx, ContainerStarted, held.Container)
	return nil
}

// startFailed records the failure before the process's end can be recorded, which
// would be another reason. The caller holds the container's lock.
func (b *base) startFailed(ctx context.Context, c state.Container, now time.Time, cause error) error {
	recordErr := b.exits.record(c.ID, state.ContainerStatus{ExitCode: exitStartError, FinishedAt: now, Reason: reasonStartError, Message: cause.Error()})
	ctx, cancel := detached(ctx)
	defer cancel()
	if err := b.Containers.Clean(ctx, c); err != nil {
		b.Log.Warn("a container that failed to start could not be cleaned up; it is tried again when it is removed", "container", c.ID, "error", err)
	}
	return errors.Join(fmt.Errorf("%w: container %s: %w", ErrStart, c.ID, cause), recordErr)
}
