package pod

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/trace"
)

// StopPod kills the pod's containers and frees all that the pod sandbox holds; its
// record and its containers' stay. What is being created or started in it is
// interrupted. It is not restarted: that is recorded before anything ends. Idempotent,
// also for concurrent callers; an unknown ID is fine.
func (m *Manager) StopPod(ctx context.Context, id string) error {
	err := m.stopPod(ctx, id, nil)
	m.Changed(id)
	return err
}

// stopPod is StopPod; where only is set, only if that holds under the pod's lock.
func (b *base) stopPod(ctx context.Context, id string, only func() bool) error {
	p, stopped, err := b.markStopping(ctx, id, only)
	if err != nil || stopped {
		return ignoreNotFound(err)
	}
	// No container can be created or started from here on.
	var kills errgroup.Group
	for _, c := range b.State.ContainersOf(p.ID) {
		kills.Go(func() error {
			ctx, step := trace.Start(ctx, "end a container")
			err := b.endContainer(ctx, c.ID, 0, always)
			step.End(err)
			return err
		})
	}
	if err := kills.Wait(); err != nil {
		return fmt.Errorf("stop pod sandbox %s: %w", p.ID, err)
	}
	held, err := b.pod(ctx, p.ID, exclusive)
	if err != nil {
		return ignoreNotFound(err)
	}
	defer held.unlock()
	if isStopped(held.Pod) || held.Status.Phase == state.PodReady {
		return nil // by another request, and started again by a third
	}
	ctx, cancel := detached(ctx)
	defer cancel()
	b.notices.pod(ctx, PodStop, held.Pod)
	ctx, step := trace.Start(ctx, "tear down")
	err = b.Sandboxes.Teardown(ctx, held.Pod)
	step.End(err)
	if err != nil {
		return err
	}
	if err := held.update(func(p *state.Pod) { p.Status = state.PodStatus{Phase: state.PodNotReady} }); err != nil {
		return err
	}
	b.events.pod(held.Pod, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	return nil
}

// markStopping lets no further container be created or started in the pod sandbox,
// and reports whether it is stopped already, or is not to be. What goes on in the pod is
// interrupted, unless only is set: that is a stop which nobody has asked for, and a start by
// the user makes it void.
func (b *base) markStopping(ctx context.Context, id string, only func() bool) (_ state.Pod, stopped bool, _ error) {
	mode := interrupt
	if only != nil {
		mode = exclusive
	}
	held, err := b.pod(ctx, id, mode)
	if err != nil {
		return state.Pod{}, false, err
	}
	defer held.unlock()
	if only != nil && !only() {
		return held.Pod, true, nil
	}
	stopped = isStopped(held.Pod)
	byUser := held.Supervised() || only == nil && held.Resumable(b.NodeID)
	if stopped && !byUser {
		return held.Pod, true, nil
	}
	err = held.update(func(p *state.Pod) {
		if !stopped {
			p.Status = state.PodStatus{Phase: state.PodStopping}
		}
		if byUser {
			p.Supervision.Stopped, p.Supervision.StoppedIn = true, b.NodeID
		}
	})
	return held.Pod, stopped, err
}

// isStopped reports whether a pod sandbox holds nothing any more. With a reason it is
// NotReady because it could not be torn down or was lost: stopping tries once more.
func isStopped(p state.Pod) bool {
	return p.Status.Phase == state.PodNotReady && p.Status.Reason == ""
}
