package pod

import (
	"context"

	"golang.org/x/sync/errgroup"
)

// RemovePod stops the pod sandbox where it runs and removes it with its containers.
// Its name is free when it returns. Idempotent, also for concurrent callers; an
// unknown ID is fine.
func (m *Manager) RemovePod(ctx context.Context, id string) error {
	p, err := m.State.FindPod(id)
	if err != nil {
		return ignoreNotFound(err)
	}
	if err := m.StopPod(ctx, p.ID); err != nil {
		return err
	}
	var removals errgroup.Group
	for _, c := range m.State.ContainersOf(p.ID) {
		removals.Go(func() error { return m.RemoveContainer(ctx, c.ID) })
	}
	if err := removals.Wait(); err != nil {
		return err
	}
	held, err := m.pod(ctx, p.ID, exclusive)
	if err != nil {
		return ignoreNotFound(err)
	}
	defer held.unlock()
	if err := m.podNames.release(podName(held.Config.V.GetMetadata()), held.ID); err != nil {
		return err
	}
	m.Forget(held.ID)
	m.Changed(held.ID)
	m.events.podDeleted(held.Pod)
	return nil
}
