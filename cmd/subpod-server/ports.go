package main

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/rootless"
)

// portForwarder publishes host ports on the real host, through the node's port
// driver. It implements netns.PortForwarder.
type portForwarder struct {
	node *rootless.Node

	mu    sync.Mutex
	taken map[int]bool // IDs of the driver that this server has asked for
}

// hostPorts returns what publishes host ports; nil in a node whose network is the
// one that it was started in.
func hostPorts(node *rootless.Node) *portForwarder {
	if node.PortSocket == "" {
		return nil
	}
	return &portForwarder{node: node, taken: map[int]bool{}}
}

// network is what a network gets: an interface that is nil without a driver.
func (f *portForwarder) network() netns.PortForwarder {
	if f == nil {
		return nil
	}
	return f
}

// Expose implements netns.PortForwarder.
func (f *portForwarder) Expose(ctx context.Context, p netns.HostPort) (func(context.Context) error, error) {
	want := rootless.PortSpec(p)
	id, err := f.node.Expose(ctx, want)
	if errors.Is(err, rootless.ErrPortTaken) {
		// By an earlier run of the server, for the same pod?
		id, err = f.find(ctx, want, err)
	}
	if errors.Is(err, rootless.ErrPortTaken) {
		return nil, fmt.Errorf("%w on the host: %w", netns.ErrPortTaken, err)
	}
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	f.taken[id] = true
	f.mu.Unlock()
	return func(ctx context.Context) error { return f.release(ctx, id) }, nil
}

func (f *portForwarder) release(ctx context.Context, id int) error {
	if err := f.node.Unexpose(ctx, id); err != nil {
		return err
	}
	f.mu.Lock()
	delete(f.taken, id)
	f.mu.Unlock()
	return nil
}

func (f *portForwarder) find(ctx context.Context, want rootless.PortSpec, taken error) (int, error) {
	exposed, err := f.node.Exposed(ctx)
	if err != nil {
		return 0, errors.Join(taken, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, p := range exposed {
		if p == want && !f.taken[id] {
			return id, nil
		}
	}
	return 0, taken
}

// sweep ends the forwardings that an earlier run of the server made and this one
// has not taken over. To be called once, when all pods are recovered.
func (f *portForwarder) sweep(ctx context.Context) error {
	if f == nil {
		return nil
	}
	exposed, err := f.node.Exposed(ctx)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var errs []error
	for id := range exposed {
		if !f.taken[id] {
			errs = append(errs, f.node.Unexpose(ctx, id))
		}
	}
	return errors.Join(errs...)
}
