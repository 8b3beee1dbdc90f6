package pod

import (
	"context"
	"fmt"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/ocispec"
	"github.com/subpod/subpod/pkg/state"
)

// UpdateContainer changes the limits of a created or running container; fields
// that are not set stay as they are. Limits that the node cannot set are left
// out and logged. ErrWrongState.
func (r *Runtime) UpdateContainer(ctx context.Context, id string, change *runtimeapi.LinuxContainerResources) error {
	c, err := r.State.Container(id)
	if err != nil {
		return err
	}
	unlock, err := r.containers.alone(ctx, c.ID)
	if err != nil {
		return err
	}
	defer unlock()
	if c, err = r.State.Container(c.ID); err != nil {
		return err
	}
	if s := c.State(); s != runtimeapi.ContainerState_CONTAINER_CREATED && s != runtimeapi.ContainerState_CONTAINER_RUNNING || c.Allocated.Runtime == nil {
		return fmt.Errorf("%w: update container %s: it is %s", ErrWrongState, c.ID, c.StateWord())
	}
	if change == nil {
		return nil
	}
	limits, warnings, err := ocispec.Resources(change, r.Cgroup)
	if err != nil {
		return err
	}
	for _, w := range warnings {
		r.Log.Warn("part of a container's new limits cannot be honoured", "container", c.ID, "what", w)
	}
	if r.Cgroup.Enabled() {
		if err := r.Executor.Update(ctx, c.ID, *c.Allocated.Runtime, limits); err != nil {
			return err
		}
	}
	_, err = r.State.UpdateContainer(c.ID, func(c *state.Container) error {
		c.Resources = state.Msg(mergeResources(c.Resources.V, change))
		return nil
	})
	return err
}

// UpdatePod records the limits of the pod as a whole. The kubelet has set them in
// the pod's cgroup, its own, before (proto: UpdatePodSandboxResources).
func (r *Runtime) UpdatePod(ctx context.Context, id string, overhead, resources *runtimeapi.LinuxContainerResources) error {
	p, err := r.readyPod(id)
	if err != nil {
		return err
	}
	unlock, err := r.pods.share(ctx, p.ID)
	if err != nil {
		return err
	}
	defer unlock()
	_, err = r.State.UpdatePod(p.ID, func(p *state.Pod) error {
		p.Overhead, p.Resources = state.Msg(overhead), state.Msg(resources)
		return nil
	})
	return err
}

// mergeResources lays what a change sets over what was in force.
func mergeResources(old, change *runtimeapi.LinuxContainerResources) *runtimeapi.LinuxContainerResources {
	if old == nil {
		return change
	}
	out := proto.CloneOf(old)
	if len(change.HugepageLimits) > 0 {
		out.HugepageLimits = nil // a list is replaced, not added to
	}
	proto.Merge(out, change)
	return out
}
