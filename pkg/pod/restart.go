package pod

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/pod/container"
	"github.com/subpod/subpod/pkg/pod/sandbox"
	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/workload"
)

// Restarter brings back what has ended, for pods of subpod's own commands: a kubelet's
// are the kubelet's. A container of the CRI never comes back from Exited. What takes the
// place of an exited one is made anew, and has its ID, name, log and, unless it is to be
// fresh, its writable layer; a pod sandbox in the same way. Its methods may be called
// concurrently, with all requests.
type Restarter struct{ *Manager }

// errStopped says that the user has stopped what was to be restarted.
var errStopped = fmt.Errorf("%w: its user has stopped it meanwhile", errdefs.ErrAborted)

// Hold keeps the pod from being stopped or removed because all its containers have
// exited (api.AnnotationWhenDone), until release is called.
func (r Restarter) Hold(podID string) (release func()) {
	end := r.restarting.add(podID)
	return func() {
		end()
		r.running.Go(func() { r.autoRemove(r.ctx, podID) })
	}
}

// RunPod makes a pod sandbox that the supervisor looks after, and with ctr, unless it is
// nil, its container, as RunPodWith does. status is what is recorded first.
func (r Restarter) RunPod(ctx context.Context, cfg *runtimeapi.PodSandboxConfig, handler string, spec *workload.Spec, status workload.Status, ctr *runtimeapi.ContainerConfig) (podID, id string, err error) {
	if ctr != nil {
		if err := container.Validate(ctr); err != nil {
			return "", "", err
		}
	}
	n, existing, err := r.claimPod(ctx, cfg, handler)
	if err != nil {
		return "", "", err
	}
	if existing != "" {
		return "", "", fmt.Errorf("%w: pod sandbox %s is %s", ErrNameTaken, podName(cfg.Metadata), existing)
	}
	n.Workload, n.Supervision = spec, status
	c, err := r.build(ctx, n, ctr)
	if err != nil {
		if ctr != nil {
			r.removeLogs(n.Pod)
		}
		return "", "", err
	}
	if c != nil {
		id = c.ID
	}
	return n.ID, id, nil
}

// Supervise changes how far a pod is; change returns false to leave it as it is.
func (r Restarter) Supervise(podID string, change func(p state.Pod) (workload.Status, bool)) (state.Pod, error) {
	unchanged := errors.New("unchanged")
	p, err := r.State.UpdatePod(podID, func(p *state.Pod) error {
		next, ok := change(*p)
		if !ok {
			return unchanged
		}
		p.Supervision = next
		return nil
	})
	if errors.Is(err, unchanged) {
		err = nil
	}
	return p, err
}

// Rebuild makes a pod sandbox that is not ready, or has lost a namespace, once more: with
// the same ID, name, host ports and files, and most likely another address. Nothing
// happens to one that is ready. wanted is asked under the pod's lock.
func (r Restarter) Rebuild(ctx context.Context, podID string, wanted func(state.Pod) bool) error {
	p, err := r.State.Pod(podID)
	if err != nil {
		return err
	}
	if p.Status.Phase == state.PodReady && r.Sandboxes.Lost(p) == "" {
		return nil
	}
	held, err := r.pod(ctx, podID, exclusive)
	if err != nil {
		return err
	}
	defer held.unlock()
	if held.Status.Phase == state.PodReady && r.Sandboxes.Lost(held.Pod) == "" {
		return nil
	}
	if !wanted(held.Pod) {
		return errStopped
	}
	// Nobody starts one again meanwhile.
	for _, c := range r.State.ContainersOf(podID) {
		if c.Status.Created {
			if err := r.endContainer(held.ctx, c.ID, 0, always); err != nil {
				return explain(held.ctx, err)
			}
		}
	}
	if err := r.rebuild(held); err != nil {
		return fmt.Errorf("build pod sandbox %s again: %w", podID, explain(held.ctx, err))
	}
	r.events.pod(held.Pod, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT)
	r.events.pod(held.Pod, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT)
	r.events.pod(held.Pod, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
	return nil
}

// rebuildReason is in the record of a pod sandbox whose server has died in rebuild: what
// was made is removed by the next one, or by StopPod.
const rebuildReason = "it was being built again"

func (b *base) rebuild(held *heldPod) error {
	if !isStopped(held.Pod) {
		b.notices.pod(held.ctx, PodStop, held.Pod)
	}
	if err := b.teardown(held.ctx, held.Pod); err != nil {
		return err
	}
	b.notices.pod(held.ctx, PodRemove, held.Pod) // as for subscribers it is another one
	plan, err := sandbox.NewPlan(held.ID, held.Config.V, b.Host)
	if err != nil {
		return err
	}
	err = held.update(func(p *state.Pod) {
		p.Allocated = plan.Resources(b.NodeID)
		p.Status = state.PodStatus{Phase: state.PodNotReady, Reason: rebuildReason}
	})
	if err != nil {
		return err
	}
	next, told := held.Pod, false
	next.Status = state.PodStatus{Phase: state.PodCreating} // as plugins see it
	err = b.Sandboxes.Build(held.ctx, plan, &next)
	if err == nil {
		told = true
		err = b.Plugins.Pod(held.ctx, PodRun, next)
	}
	if err == nil {
		err = held.update(func(p *state.Pod) {
			p.Allocated = next.Allocated
			p.Status = state.PodStatus{Phase: state.PodReady}
			p.Supervision.Generation++
		})
	}
	if err == nil {
		return nil
	}
	reason := ""
	if told {
		b.notices.pod(held.ctx, PodStop, next)
	}
	if undo := b.teardown(held.ctx, next); undo != nil {
		err, reason = errors.Join(err, undo), "it could not be built again and not be undone: "+undo.Error()
	}
	return errors.Join(err, held.update(func(p *state.Pod) {
		p.Allocated = next.Allocated
		p.Status = state.PodStatus{Phase: state.PodNotReady, Reason: reason}
	}))
}

func (b *base) teardown(ctx context.Context, p state.Pod) error {
	ctx, cancel := detached(ctx)
	defer cancel()
	return b.Sandboxes.Teardown(ctx, p)
}

// StartAgain starts a container: one that is created; one that has exited is made again
// first, in its own place, with the configuration cfg unless that is nil. Nothing happens
// to one that runs. fresh gives it a new root file system. wanted is asked under the
// container's lock.
func (r Restarter) StartAgain(ctx context.Context, id string, cfg *runtimeapi.ContainerConfig, fresh bool, wanted func(state.Pod) bool) error {
	c, err := r.State.FindContainer(id)
	if err != nil {
		return err
	}
	p, err := r.pod(ctx, c.PodID, shared)
	if err != nil {
		return err
	}
	defer p.unlock()
	if p.Status.Phase != state.PodReady {
		return wrongState("start container %s: its pod sandbox %s is not ready", c.ID, p.ID)
	}
	held, err := r.container(p.ctx, c.ID, exclusive)
	if err != nil {
		return explain(p.ctx, err)
	}
	defer held.unlock()
	// Whoever stops it records that first, and then interrupts us.
	if now, err := r.State.Pod(p.ID); err != nil || !wanted(now) || held.Status.Removing {
		return errors.Join(errStopped, err)
	}
	switch held.State() {
	case runtimeapi.ContainerState_CONTAINER_RUNNING:
		return nil
	case runtimeapi.ContainerState_CONTAINER_EXITED:
		if err := r.remake(held, p.Pod, cfg, fresh); err != nil {
			return fmt.Errorf("make container %s again: %w", c.ID, explain(held.ctx, err))
		}
	}
	return r.startHeld(ctx, held)
}

// remake makes an exited container again. Until that has succeeded its record says that
// it has exited, and on an error it has.
func (r Restarter) remake(held *heldContainer, p state.Pod, cfg *runtimeapi.ContainerConfig, fresh bool) error {
	if !held.Allocated.Cleaned {
		if err := r.Containers.Clean(held.ctx, held.Container); err != nil {
			return err
		}
	}
	// The exit is recorded, and its watch, which there is one of for each ID, about to end.
	if err := r.exits.wait(held.ctx, r.ctx, held.ID); err != nil {
		return err
	}
	c := held.Container
	if cfg != nil {
		c.Config = state.Msg(cfg)
	}
	next, err := r.planAgain(c, p)
	if err != nil {
		return err
	}
	if err := held.update(func(c *state.Container) { c.Allocated = next.Allocated }); err != nil {
		return err
	}
	next.NextRun()
	r.notices.container(held.ctx, ContainerRemove, held.Container)
	if err = r.makeAgain(held.ctx, next, p, fresh); err != nil {
		r.notices.container(held.ctx, ContainerUndone, next.Container)
		ctx, cancel := detached(held.ctx)
		defer cancel()
		if undo := r.Containers.Clean(ctx, next.Container); undo != nil {
			return errors.Join(err, undo) // Remaking stays: it is cleaned up by the next one
		}
		return errors.Join(err, held.update(func(c *state.Container) { c.Allocated.Cleaned, c.Allocated.Remaking = true, false }))
	}
	held.Container = next.Container
	// For subscribers it is another container with the same ID.
	r.events.container(held.Container, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT)
	r.announce(next)
	return nil
}

// planAgain plans a container in the place of c, of the same image, whatever its name
// stands for by now.
func (r Restarter) planAgain(c state.Container, p state.Pod) (*newContainer, error) {
	cfg := proto.Clone(c.Config.V).(*runtimeapi.ContainerConfig)
	if c.Resources.V != nil { // as they were changed since
		if cfg.Linux == nil {
			cfg.Linux = &runtimeapi.LinuxContainerConfig{}
		}
		cfg.Linux.Resources = mergeResources(cfg.Linux.Resources, c.Resources.V)
	}
	if cfg.Image.UserSpecifiedImage == "" {
		cfg.Image.UserSpecifiedImage = c.Allocated.ImageName
	}
	if c.Allocated.ImageID != "" {
		cfg.Image.Image = c.Allocated.ImageID
	}
	var target *state.Container
	if t, err := r.State.Container(container.Target(cfg)); err == nil {
		target = &t
	}
	plan, err := container.NewPlan(c.ID, cfg, p, target, r.Host.Cgroup)
	if err != nil {
		return nil, err
	}
	next := &newContainer{plan: plan, name: containerName(p.ID, cfg.Metadata), Container: c}
	next.Allocated = plan.Resources(r.NodeID)
	next.Allocated.ImageID, next.Allocated.ImageRef, next.Allocated.ImageName = c.Allocated.ImageID, c.Allocated.ImageRef, c.Allocated.ImageName
	next.Allocated.Remaking = true
	return next, nil
}

func (r Restarter) makeAgain(ctx context.Context, c *newContainer, p state.Pod, fresh bool) error {
	if fresh {
		if err := r.Containers.Delete(ctx, c.Container); err != nil {
			return err
		}
	}
	prepared, err := r.Containers.Prepare(ctx, c.plan, p, &c.Container)
	if err != nil {
		return err
	}
	if err := r.Containers.Create(ctx, prepared, p, &c.Container); err != nil {
		return err
	}
	c.Allocated.Remaking = false
	return r.commitContainer(c)
}

// End ends a container as StopContainer does; the supervisor restarts it.
func (r Restarter) End(ctx context.Context, id string, grace time.Duration) error {
	return r.endContainer(ctx, id, grace, always)
}

// Finish stops or removes a pod whose containers have ended for good, as it asks for.
func (r Restarter) Finish(ctx context.Context, podID string) error {
	p, err := r.State.Pod(podID)
	if err != nil {
		return ignoreNotFound(err)
	}
	over := func() bool {
		p, err := r.State.Pod(podID)
		return err == nil && !p.Supervised()
	}
	for _, c := range r.State.ContainersOf(podID) {
		// What its user starts again meanwhile is not over.
		if err := r.endContainer(ctx, c.ID, p.Workload.Grace, over); err != nil {
			return err
		}
	}
	if p.Config.V.GetAnnotations()[api.AnnotationWhenDone] != "" {
		r.autoRemove(ctx, podID)
		return ctx.Err()
	}
	return r.stopPod(ctx, podID, over)
}

// MarkStopped records that the user ends a container: it is not restarted.
func (r Restarter) MarkStopped(ctx context.Context, id string) error {
	c, err := r.State.FindContainer(id)
	if err != nil {
		return ignoreNotFound(err)
	}
	return r.markStopped(ctx, c)
}

// markStopped records that the user stops a container, before it is acknowledged, and
// interrupts who starts it.
func (b *base) markStopped(ctx context.Context, c state.Container) error {
	p, err := b.State.Pod(c.PodID)
	if err != nil || !p.Supervised() && !p.Resumable(b.NodeID) {
		return ignoreNotFound(err)
	}
	name := c.Config.V.GetMetadata().GetName()
	_, err = b.State.UpdatePod(p.ID, func(p *state.Pod) error {
		if p.Workload.Made() {
			name = p.Workload.Containers[0].Name
		}
		progress := p.Supervision.Containers[name]
		progress.Stopped = true
		p.Supervision = p.Supervision.With(name, progress)
		p.Supervision.StoppedIn = b.NodeID
		return nil
	})
	if err != nil {
		return ignoreNotFound(err)
	}
	held, err := b.container(ctx, c.ID, interrupt)
	if err != nil {
		return ignoreNotFound(err)
	}
	held.unlock()
	return nil
}
