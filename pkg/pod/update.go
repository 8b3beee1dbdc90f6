package pod

import (
	"context"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/ocispec"
	"github.com/subpod/subpod/pkg/state"
)

// UpdateContainer changes the limits of a created or running container; fields
// that are not set stay as they are. Limits that the node cannot set are left
// out and logged. errdefs.ErrFailedPrecondition, errdefs.ErrAborted when another
// request removes the container meanwhile.
func (m *Manager) UpdateContainer(ctx context.Context, id string, change *runtimeapi.LinuxContainerResources) error {
	held, err := m.container(ctx, id, exclusive)
	if err != nil {
		return err
	}
	defer held.unlock()
	if s := held.State(); s != runtimeapi.ContainerState_CONTAINER_CREATED && s != runtimeapi.ContainerState_CONTAINER_RUNNING || held.Allocated.Runtime == nil {
		return wrongState("update container %s: it is %s", held.ID, held.StateWord())
	}
	if change == nil {
		return nil
	}
	limits, warnings, err := ocispec.Resources(change, m.Host.Cgroup)
	if err != nil {
		return err
	}
	for _, w := range warnings {
		m.Log.Log(ctx, m.once.Sentence(w), "part of a container's new limits cannot be honoured (said once, of others at level debug)", "container", held.ID, "what", w)
	}
	if m.Host.Cgroup.Enabled() {
		if err := m.Processes.Update(held.ctx, held.ID, *held.Allocated.Runtime, limits); err != nil {
			return explain(held.ctx, err)
		}
	}
	return held.update(func(c *state.Container) {
		c.Resources = state.Msg(mergeResources(c.Resources.V, change))
	})
}

// UpdatePod records the limits of the pod as a whole. The kubelet has set them in
// the pod's cgroup, its own, before (proto: UpdatePodSandboxResources).
// errdefs.ErrFailedPrecondition.
func (m *Manager) UpdatePod(ctx context.Context, id string, overhead, resources *runtimeapi.LinuxContainerResources) error {
	held, err := m.pod(ctx, id, shared)
	if err != nil {
		return err
	}
	defer held.unlock()
	if held.Status.Phase != state.PodReady {
		return wrongState("pod sandbox %s is not ready", held.ID)
	}
	return held.update(func(p *state.Pod) {
		p.Overhead, p.Resources = state.Msg(overhead), state.Msg(resources)
	})
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
