package pod

import (
	"context"
	"fmt"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Pause freezes the processes of a running container, or lets them go on. Idempotent.
// errdefs.ErrFailedPrecondition for one that does not run; cgroup.ErrNoFreezer.
func (r Restarter) Pause(ctx context.Context, id string, frozen bool) error {
	held, err := r.container(ctx, id, exclusive)
	if err != nil {
		return err
	}
	defer held.unlock()
	if held.State() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return wrongState("container %s is %s, and only a running one can be paused", held.ID, held.StateWord())
	}
	if err := r.Host.Cgroup.Freeze(ctx, held.Allocated.Cgroup, frozen); err != nil {
		return fmt.Errorf("container %s: %w", held.ID, err)
	}
	return nil
}
