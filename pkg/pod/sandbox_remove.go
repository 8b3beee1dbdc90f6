package pod

import (
	"context"
	"errors"

	"golang.org/x/sync/errgroup"

	"github.com/subpod/subpod/pkg/state"
)

// RemovePod stops the pod sandbox where it runs and removes it with its
// containers. Idempotent; an unknown ID is fine.
func (r *Runtime) RemovePod(ctx context.Context, id string) error {
	p, err := r.State.FindPod(id)
	if errors.Is(err, state.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := r.StopPod(ctx, p.ID); err != nil {
		return err
	}
	var removals errgroup.Group
	for _, c := range r.State.ContainersOf(p.ID) {
		removals.Go(func() error { return r.RemoveContainer(ctx, c.ID) })
	}
	if err := removals.Wait(); err != nil {
		return err
	}
	unlock, err := r.pods.alone(ctx, p.ID)
	if err != nil {
		return err
	}
	defer unlock()
	if err := r.State.DeletePod(p.ID); err != nil {
		return err
	}
	r.Stats.Forget(p.ID)
	r.podNames.free(podName(p.Config.V.GetMetadata()), p.ID)
	r.emitPodDeleted(p)
	return nil
}
