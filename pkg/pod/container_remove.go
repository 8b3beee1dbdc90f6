package pod

import (
	"context"
	"errors"

	"github.com/subpod/subpod/pkg/state"
)

// RemoveContainer kills the container where it runs and removes all of it but
// its log. Idempotent; an unknown ID is fine.
func (r *Runtime) RemoveContainer(ctx context.Context, id string) error {
	c, err := r.State.FindContainer(id)
	if errors.Is(err, state.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = r.State.UpdateContainer(c.ID, func(c *state.Container) error {
		c.Status.Removing = true
		return nil
	})
	if errors.Is(err, state.ErrNotFound) {
		return nil // another request was first
	}
	if err != nil {
		return err
	}
	if err := r.StopContainer(ctx, c.ID, 0); err != nil {
		return err
	}
	unlock, err := r.containers.alone(ctx, c.ID)
	if err != nil {
		return err
	}
	defer unlock()
	ctx, cancel := r.detached(ctx)
	defer cancel()
	if c, err = r.State.Container(c.ID); errors.Is(err, state.ErrNotFound) {
		return nil // another request was first
	} else if err != nil {
		return err
	}
	if err := r.teardownContainer(ctx, c); err != nil {
		return err
	}
	if err := r.State.DeleteContainer(c.ID); err != nil {
		return err
	}
	r.Stats.Forget(c.ID)
	r.ctrNames.free(containerName(c.PodID, c.Config.V.GetMetadata()), c.ID)
	r.emitContainerDeleted(c)
	return nil
}
