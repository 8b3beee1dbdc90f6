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
// out and logged. errdefs.ErrFailedPrecondition, errdefs.ErrAborted when another
// request removes the container meanwhile.
func (m *Manager) UpdateContainer(ctx context.Context, id string, change *runtimeapi.LinuxContainerResources) error {
	return update(ctx, m.base, id, func(held *heldContainer) error {
		p, err := m.State.Pod(held.PodID)
		if err != nil {
			return err
		}
		if change, err = m.Plugins.Limits(held.ctx, p, held.Container, change); err != nil {
			return explain(held.ctx, err)
		}
		if err := limit(m.base, held, change); err != nil {
			return err
		}
		m.notices.container(ctx, ContainerUpdated, held.Container)
		return nil
	})
}

// LimitContainer is UpdateContainer for a plugin: others are not asked.
func LimitContainer(ctx context.Context, m *Manager, id string, change *runtimeapi.LinuxContainerResources) error {
	return update(ctx, m.base, id, func(held *heldContainer) error { return limit(m.base, held, change) })
}

// update calls change with a created or running container under its lock.
func update(ctx context.Context, b *base, id string, change func(*heldContainer) error) error {
	held, err := b.container(ctx, id, exclusive)
	if err != nil {
		return err
	}
	defer held.unlock()
	if s := held.State(); s != runtimeapi.ContainerState_CONTAINER_CREATED && s != runtimeapi.ContainerState_CONTAINER_RUNNING || held.Allocated.Runtime == nil {
		return wrongState("update container %s: it is %s", held.ID, held.StateWord())
	}
	return change(held)
}

// limit sets limits of a container, and records them.
func limit(b *base, held *heldContainer, change *runtimeapi.LinuxContainerResources) error {
	if change == nil {
		return nil
	}
	limits, warnings, err := ocispec.Resources(change, b.Host.Cgroup)
	if err != nil {
		return err
	}
	for _, w := range warnings {
		b.Log.Log(held.ctx, b.once.Sentence(w), "part of a container's new limits cannot be honoured (said once, of others at level debug)", "container", held.ID, "what", w)
	}
	if b.Host.Cgroup.Enabled() {
		if err := b.Processes.Update(held.ctx, held.ID, *held.Allocated.Runtime, limits); err != nil {
			return explain(held.ctx, err)
		}
	}
	return held.update(func(c *state.Container) {
		c.Resources = state.Msg(mergeResources(c.Resources.V, change))
	})
}

// UpdatePod changes the limits of the pod as a whole. A kubelet has set them in the pod's
// cgroup, its own, before (proto: UpdatePodSandboxResources): there they are only recorded.
// Limits that the node cannot set are left out and logged. errdefs.ErrFailedPrecondition,
// errdefs.ErrInvalidArgument.
func (m *Manager) UpdatePod(ctx context.Context, id string, overhead, resources *runtimeapi.LinuxContainerResources) error {
	held, err := m.pod(ctx, id, shared)
	if err != nil {
		return err
	}
	defer held.unlock()
	if held.Status.Phase != state.PodReady {
		return wrongState("pod sandbox %s is not ready", held.ID)
	}
	change := func(p *state.Pod) { p.Overhead, p.Resources = state.Msg(overhead), state.Msg(resources) }
	changed := held.Pod
	change(&changed)
	if err := m.Plugins.Pod(held.ctx, PodUpdate, changed); err != nil {
		return explain(held.ctx, err)
	}
	leftOut, err := m.Sandboxes.Limit(changed)
	for _, w := range leftOut {
		m.Log.Warn("part of a pod's new limits cannot be honoured", "pod", held.ID, "what", w)
	}
	if err != nil {
		return fmt.Errorf("update pod sandbox %s: %w", held.ID, err)
	}
	if err := held.update(change); err != nil {
		return err
	}
	m.notices.pod(ctx, PodUpdated, held.Pod)
	return nil
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
