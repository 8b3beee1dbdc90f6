package pod

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/trace"
)

// RemoveContainer kills the container where it runs and removes all of it but its
// log. A request that starts or updates it, and those who still copy its files, are
// interrupted. Its name is free when it returns. Idempotent, also for concurrent callers; an unknown ID is fine.
func (m *Manager) RemoveContainer(ctx context.Context, id string) error {
	held, err := m.container(ctx, id, interrupt)
	if err != nil {
		return ignoreNotFound(err)
	}
	err = held.update(func(c *state.Container) { c.Status.Removing = true })
	held.unlock()
	if err != nil {
		return err
	}
	id = held.ID
	if err := m.StopContainer(ctx, id, 0); err != nil {
		return err
	}
	// No reference can be added from here on.
	if err := trace.Do(ctx, "end copies", func() error { return m.references.end(ctx, id) }); err != nil {
		return err
	}
	if held, err = m.container(ctx, id, interrupt); err != nil {
		return ignoreNotFound(err) // another request was first
	}
	defer held.unlock()
	ctx, cancel := detached(ctx)
	defer cancel()
	if err := trace.Do(ctx, "delete", func() error { return m.Containers.Delete(ctx, held.Container) }); err != nil {
		return err
	}
	if err := m.containerNames.release(containerName(held.PodID, held.Config.V.GetMetadata()), id); err != nil {
		return err
	}
	m.notices.container(ctx, ContainerRemove, held.Container)
	m.Forget(id)
	m.events.container(held.Container, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT)
	return nil
}
