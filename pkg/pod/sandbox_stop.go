package pod

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/state"
)

// StopPod kills the pod's containers and frees all that the pod sandbox holds;
// its record and its containers' stay. Idempotent; an unknown ID is fine.
func (r *Runtime) StopPod(ctx context.Context, id string) error {
	p, err := r.State.FindPod(id)
	if errors.Is(err, state.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if p.Status.Phase == state.PodNotReady && p.Status.Reason == "" {
		return nil
	}
	if p, err = r.markStopping(ctx, p.ID); err != nil {
		return err
	}
	// No container can be created or started from here on.
	var kills errgroup.Group
	for _, c := range r.State.ContainersOf(p.ID) {
		kills.Go(func() error { return r.StopContainer(ctx, c.ID, 0) })
	}
	if err := kills.Wait(); err != nil {
		return fmt.Errorf("stop pod sandbox %s: %w", p.ID, err)
	}
	unlock, err := r.pods.alone(ctx, p.ID)
	if err != nil {
		return err
	}
	defer unlock()
	ctx, cancel := r.detached(ctx)
	defer cancel()
	if err := r.teardownPod(ctx, p); err != nil {
		return err
	}
	if _, err := r.State.UpdatePod(p.ID, func(p *state.Pod) error {
		p.Status = state.PodStatus{Phase: state.PodNotReady}
		return nil
	}); err != nil && !errors.Is(err, state.ErrNotFound) {
		return err
	}
	r.emitPod(p.ID, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	return nil
}

// markStopping waits for the creates and starts in the pod that are under way,
// and lets no further one begin.
func (r *Runtime) markStopping(ctx context.Context, id string) (state.Pod, error) {
	unlock, err := r.pods.alone(ctx, id)
	if err != nil {
		return state.Pod{}, err
	}
	defer unlock()
	return r.State.UpdatePod(id, func(p *state.Pod) error {
		p.Status = state.PodStatus{Phase: state.PodStopping}
		return nil
	})
}
