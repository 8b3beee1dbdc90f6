package pod

import (
	"context"

	"github.com/subpod/subpod/pkg/state"
)

// heldPod is a pod sandbox under its lock, with the record as it is then.
type heldPod struct {
	state.Pod
	// ctx is the request's; it also ends when another request interrupts this one.
	ctx    context.Context
	b      *base
	unlock func()
}

// pod is the one entry for work on a pod sandbox: it resolves an ID or a unique
// prefix of one, locks, and reads the record under the lock. The caller must unlock.
// state.ErrNotFound, state.ErrAmbiguous.
func (b *base) pod(ctx context.Context, ref string, mode mode) (*heldPod, error) {
	p, err := b.State.FindPod(ref)
	if err != nil {
		return nil, err
	}
	held, unlock, err := b.podLocks.acquire(ctx, p.ID, mode)
	if err != nil {
		return nil, err
	}
	if p, err = b.State.Pod(p.ID); err != nil {
		unlock()
		return nil, err
	}
	return &heldPod{Pod: p, ctx: held, b: b, unlock: unlock}, nil
}

// update changes the record, and h.Pod with it.
func (h *heldPod) update(change func(*state.Pod)) error {
	p, err := h.b.State.UpdatePod(h.ID, func(p *state.Pod) error {
		change(p)
		return nil
	})
	if err == nil {
		h.Pod = p
	}
	return err
}

// heldContainer is a container under its lock, with the record as it is then.
type heldContainer struct {
	state.Container
	// ctx is the request's; it also ends when another request interrupts this one.
	ctx    context.Context
	b      *base
	unlock func()
}

// container is pod for containers, whose lock is never shared.
func (b *base) container(ctx context.Context, ref string, mode mode) (*heldContainer, error) {
	c, err := b.State.FindContainer(ref)
	if err != nil {
		return nil, err
	}
	held, unlock, err := b.containerLocks.acquire(ctx, c.ID, mode)
	if err != nil {
		return nil, err
	}
	if c, err = b.State.Container(c.ID); err != nil {
		unlock()
		return nil, err
	}
	return &heldContainer{Container: c, ctx: held, b: b, unlock: unlock}, nil
}

// update changes the record, and h.Container with it.
func (h *heldContainer) update(change func(*state.Container)) error {
	c, err := h.b.State.UpdateContainer(h.ID, func(c *state.Container) error {
		change(c)
		return nil
	})
	if err == nil {
		h.Container = c
	}
	return err
}
