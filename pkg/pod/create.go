package pod

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/pod/container"
	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/trace"
)

// newContainer is a container whose name is claimed and which is locked until unlock.
type newContainer struct {
	state.Container
	plan   container.Plan
	name   string
	unlock func()
}

// CreateContainer makes a container in a ready pod sandbox and returns its ID. A
// retry with the same metadata and configuration returns the container that the
// first request made. A command that cannot be started is reported by
// StartContainer, as with a runtime that looks only then.
// errdefs.ErrInvalidArgument, ErrNameTaken, errdefs.ErrFailedPrecondition,
// errdefs.ErrAborted when another request stops the pod sandbox meanwhile,
// storage.ErrImageNotFound.
func (m *Manager) CreateContainer(ctx context.Context, podID string, cfg *runtimeapi.ContainerConfig) (string, error) {
	if err := container.Validate(cfg); err != nil {
		return "", err
	}
	if p, err := m.State.FindPod(podID); err == nil && p.Status.Phase == state.PodCreating {
		return "", wrongState("pod sandbox %s is not ready: its creation has not succeeded", p.ID) // nobody can know its ID but a plugin
	}
	held, err := m.pod(ctx, podID, shared)
	if err != nil {
		return "", err
	}
	defer held.unlock()
	if held.Status.Phase != state.PodReady {
		return "", wrongState("pod sandbox %s is not ready", held.ID)
	}
	if err := checkLost(ctx, m.base, held.Pod); err != nil {
		return "", err
	}
	c, existing, err := m.claimContainer(held.ctx, held.Pod, cfg)
	if err != nil || existing != "" {
		return existing, err
	}
	defer c.unlock()
	if err := m.makeContainer(held.ctx, c, held.Pod); err != nil {
		err = errors.Join(explain(held.ctx, err), m.undoContainer(ctx, c))
		if held.ctx.Err() == nil { // nobody stops it
			err = errors.Join(err, checkLost(ctx, m.base, held.Pod)) // it may be why
		}
		return "", fmt.Errorf("create container %q in pod sandbox %s: %w", cfg.Metadata.Name, held.ID, err)
	}
	m.announce(c)
	return c.ID, nil
}

// checkLost makes a pod sandbox that can hold no more containers not ready.
// errdefs.ErrFailedPrecondition.
func checkLost(ctx context.Context, b *base, p state.Pod) error {
	reason := b.Sandboxes.Lost(p)
	if reason == "" {
		return nil
	}
	return errors.Join(wrongState("pod sandbox %s can hold no more containers: %s", p.ID, reason), b.markLost(ctx, p, reason))
}

// claimContainer plans a container, claims its name and locks it; for a retry it
// returns the ID of the one that is there.
func (b *base) claimContainer(ctx context.Context, p state.Pod, cfg *runtimeapi.ContainerConfig) (*newContainer, string, error) {
	if err := container.Fits(cfg, p); err != nil {
		return nil, "", err
	}
	id := newID()
	var target *state.Container
	if t, err := b.State.Container(container.Target(cfg)); err == nil {
		target = &t
	}
	plan, err := container.NewPlan(id, cfg, p, target, b.Host.Cgroup)
	if err != nil {
		return nil, "", err
	}
	c := &newContainer{plan: plan, name: containerName(p.ID, cfg.Metadata), Container: state.Container{
		ID:        id,
		PodID:     p.ID,
		Config:    state.Msg(cfg),
		Resources: state.Msg(cfg.GetLinux().GetResources()),
		CreatedAt: time.Now(),
		Allocated: plan.Resources(b.NodeID),
	}}
	trace.Set(ctx, "container", id)
	trace.Set(ctx, "containerName", cfg.Metadata.GetName())
	_, step := trace.Start(ctx, "claim the name")
	existing, err := b.containerNames.claim(ctx, c.name, id)
	step.End(err)
	if err != nil {
		return nil, "", explain(ctx, err)
	}
	if existing != nil {
		id, err := sameContainer(*existing, cfg)
		return nil, id, err
	}
	if _, c.unlock, err = b.containerLocks.acquire(ctx, id, exclusive); err != nil {
		b.containerNames.abort(c.name, id)
		return nil, "", explain(ctx, err)
	}
	return c, "", nil
}

// makeContainer is the sequence in a pod sandbox that is ready.
func (m *Manager) makeContainer(ctx context.Context, c *newContainer, p state.Pod) error {
	prepared, err := m.prepareContainer(ctx, c, p)
	if err != nil {
		return err
	}
	if err := m.Containers.Create(ctx, prepared, p, &c.Container); err != nil {
		return err
	}
	return m.commitContainer(c)
}

// prepareContainer writes the record and makes what needs no pod sandbox.
func (b *base) prepareContainer(ctx context.Context, c *newContainer, p state.Pod) (*container.Prepared, error) {
	if err := trace.Do(ctx, "record", func() error { return b.State.PutContainer(c.Container) }); err != nil {
		return nil, err
	}
	return b.Containers.Prepare(ctx, c.plan, p, &c.Container)
}

// commitContainer records that the container has been created; announce follows.
func (m *Manager) commitContainer(c *newContainer) error {
	c.Status.Created = true
	var w *watch
	if c.Allocated.Runtime != nil {
		// Whoever finds the record finds the watch, too.
		w, _ = m.exits.begin(c.Container)
	}
	if err := m.State.PutContainer(c.Container); err != nil {
		if w != nil {
			m.exits.drop(c.ID, w)
		}
		return err
	}
	m.containerNames.commit(c.name, c.ID)
	m.notices.container(m.ctx, ContainerCreated, c.Container)
	return nil
}

// announce publishes that the container has been created, and waits for its exit from
// then on.
func (m *Manager) announce(c *newContainer) {
	m.events.container(c.Container, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT)
	if w := m.exits.watchOf(c.ID); w != nil {
		m.follow(c.Container, w)
	}
}

// sameContainer answers a retried CreateContainer.
func sameContainer(c state.Container, cfg *runtimeapi.ContainerConfig) (string, error) {
	if !proto.Equal(c.Config.V, cfg) {
		return "", fmt.Errorf("%w: container %q, attempt %d, is %s, made from another configuration; remove it, or raise the attempt", ErrNameTaken, cfg.Metadata.Name, cfg.Metadata.Attempt, c.ID)
	}
	return c.ID, nil
}

// undoContainer removes what a failed creation made, and ends the claim of the name.
// What cannot be undone stays in the record, which is shown to nobody, until the pod
// sandbox is removed; its name is free.
func (b *base) undoContainer(ctx context.Context, c *newContainer) error {
	c.Status.Created = false
	b.notices.container(ctx, ContainerUndone, c.Container)
	err := b.deleteUncreated(ctx, c.Container)
	if err != nil {
		// Who tries again works from the record, which does not know of a process yet.
		err = errors.Join(err, b.State.PutContainer(c.Container))
	}
	return err
}

// deleteUncreated removes a container whose creation has not succeeded, and frees its
// name in any case.
func (b *base) deleteUncreated(ctx context.Context, c state.Container) error {
	ctx, cancel := detached(ctx)
	defer cancel()
	name := containerName(c.PodID, c.Config.V.GetMetadata())
	if err := b.Containers.Delete(ctx, c); err != nil {
		b.containerNames.abort(name, c.ID)
		return err
	}
	err := b.containerNames.release(name, c.ID)
	if err != nil {
		b.containerNames.abort(name, c.ID)
	}
	return err
}
