package pod

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/state"
)

// StopPod kills the pod's containers and frees all that the pod sandbox holds; its
// record and its containers' stay. What is being created or started in it is
// interrupted. Idempotent, also for concurrent callers; an unknown ID is fine.
func (m *Manager) StopPod(ctx context.Context, id string) error {
	p, stopped, err := m.markStopping(ctx, id)
	if err != nil || stopped {
		return ignoreNotFound(err)
	}
	// No container can be created or started from here on.
	var kills errgroup.Group
	for _, c := range m.State.ContainersOf(p.ID) {
		kills.Go(func() error { return m.StopContainer(ctx, c.ID, 0) })
	}
	if err := kills.Wait(); err != nil {
		return fmt.Errorf("stop pod sandbox %s: %w", p.ID, err)
	}
	held, err := m.pod(ctx, p.ID, exclusive)
	if err != nil {
		return ignoreNotFound(err)
	}
	defer held.unlock()
	if isStopped(held.Pod) {
		return nil // by another request
	}
	ctx, cancel := detached(ctx)
	defer cancel()
	if err := m.Sandboxes.Teardown(ctx, held.Pod); err != nil {
		return err
	}
	if err := held.update(func(p *state.Pod) { p.Status = state.PodStatus{Phase: state.PodNotReady} }); err != nil {
		return err
	}
	m.events.pod(held.Pod, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	return nil
}

// markStopping lets no further container be created or started in the pod sandbox,
// and reports whether it is stopped already.
func (b *base) markStopping(ctx context.Context, id string) (_ state.Pod, stopped bool, _ error) {
	held, err := b.pod(ctx, id, interrupt)
	if err != nil {
		return state.Pod{}, false, err
	}
	defer held.unlock()
	if isStopped(held.Pod) {
		return held.Pod, true, nil
	}
	err = held.update(func(p *state.Pod) { p.Status = state.PodStatus{Phase: state.PodStopping} })
	return held.Pod, false, err
}

// isStopped reports whether a pod sandbox holds nothing any more. With a reason it is
// NotReady because it could not be torn down or was lost: stopping tries once more.
func isStopped(p state.Pod) bool {
	return p.Status.Phase == state.PodNotReady && p.Status.Reason == ""
}
