package pod

import (
	"context"

	"golang.org/x/sync/errgroup"

	"github.com/subpod/subpod/pkg/trace"
)

// RemovePod stops the pod sandbox where it runs and removes it with its containers.
// Its name is free when it returns. Idempotent, also for concurrent callers; an
// unknown ID is fine.
func (m *Manager) RemovePod(ctx context.Context, id string) error {
	p, err := m.State.FindPod(id)
	if err != nil {
		return ignoreNotFound(err)
	}
	held, err := m.emptied(ctx, p.ID)
	if err != nil {
		return ignoreNotFound(err)
	}
	defer held.unlock()
	if err := m.podNames.release(podName(held.Config.V.GetMetadata()), held.ID); err != nil {
		return err
	}
	m.notices.pod(ctx, PodRemove, held.Pod)
	m.Forget(held.ID)
	m.Changed(held.ID)
	m.events.podDeleted(held.Pod)
	return nil
}

// emptied returns the pod sandbox, locked exclusively, without containers and holding
// nothing. Whoever starts it again meanwhile has to see that end.
func (m *Manager) emptied(ctx context.Context, id string) (*heldPod, error) {
	for {
		if err := m.StopPod(ctx, id); err != nil {
			return nil, err
		}
		var removals errgroup.Group
		for _, c := range m.State.ContainersOf(id) {
			removals.Go(func() error {
				ctx, step := trace.Start(ctx, "remove a container")
				err := m.RemoveContainer(ctx, c.ID)
				step.End(err)
				return err
			})
		}
		if err := removals.Wait(); err != nil {
			return nil, err
		}
		held, err := m.pod(ctx, id, exclusive)
		if err != nil || isStopped(held.Pod) {
			return held, err
		}
		held.unlock()
	}
}
