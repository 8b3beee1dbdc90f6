package pod

import (
	"context"
	"slices"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/workload"
)

// SetPolicy changes when a container of "subpod run" or "create" is restarted, and returns
// the ID of its pod sandbox. The present run goes on; one that has ended is not started by
// it. errdefs.ErrFailedPrecondition for other pods, and for one that is removed once it has
// ended.
func (r Restarter) SetPolicy(ctx context.Context, id string, policy workload.Policy) (podID string, err error) {
	c, err := r.State.FindContainer(id)
	if err != nil {
		return "", err
	}
	held, err := r.pod(ctx, c.PodID, exclusive)
	if err != nil {
		return "", err
	}
	defer held.unlock()
	all := r.State.ContainersOf(held.ID)
	switch {
	case held.Config.V.GetLabels()[api.LabelMadeBy] != api.MadeByRun || held.Workload != nil && !held.Workload.Made():
		return "", wrongState("container %s: only what \"subpod run\" or \"subpod create\" has made has a restart policy that can be changed", c.ID)
	case len(all) != 1:
		return "", wrongState("container %s: its pod sandbox has %d containers, and only one that is alone there can be restarted", c.ID, len(all))
	case policy.Name != workload.No && held.Config.V.GetAnnotations()[api.AnnotationWhenDone] == api.WhenDoneRemove:
		return "", wrongState("container %s is removed once it has exited, and so cannot be restarted", c.ID)
	case held.Workload == nil && policy.Name == workload.No:
		return held.ID, nil
	}
	c = all[0]
	return held.ID, held.update(func(p *state.Pod) {
		if p.Workload != nil {
			spec := *p.Workload // others read it
			spec.Containers = slices.Clone(spec.Containers)
			spec.Containers[0].Restart = policy
			p.Workload = &spec
			return
		}
		name := c.Config.V.GetMetadata().GetName()
		p.Workload = &workload.Spec{Backoff: workload.RunBackoff, Containers: []workload.Container{{Name: name, Role: workload.Main, Restart: policy}}}
		p.Supervision = workload.Status{StartedAt: time.Now()}.With(name, workload.Progress{Ran: true})
		if c.State() != runtimeapi.ContainerState_CONTAINER_RUNNING {
			p.Supervision.Stopped, p.Supervision.StoppedIn = true, r.NodeID
		}
	})
}
