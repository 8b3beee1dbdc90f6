package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/netns/bridge"
	"github.com/subpod/subpod/rootless"
)

// portForwarder publishes the pods' host ports on the real host, through the
// node's port driver.
type portForwarder struct{ node *rootless.Node }

// hostPorts returns what publishes host ports; nil in a node whose network is the
// one that it was started in.
func hostPorts(node *rootless.Node) bridge.PortForwarder {
	if node.PortSocket == "" {
		return nil
	}
	return portForwarder{node}
}

// Expose implements bridge.PortForwarder.
func (f portForwarder) Expose(ctx context.Context, p bridge.HostPort) (func(context.Context) error, error) {
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
	return func(ctx context.Context) error { return f.node.Unexpose(ctx, id) }, nil
}

func (f portForwarder) find(ctx context.Context, want rootless.PortSpec, taken error) (int, error) {
	exposed, err := f.node.Exposed(ctx)
	if err != nil {
		return 0, errors.Join(taken, err)
	}
	for id, p := range exposed {
		if p == want {
			return id, nil
		}
	}
	return 0, taken
}

// Keep implements bridge.PortForwarder.
func (f portForwarder) Keep(ctx context.Context, live []bridge.HostPort) error {
	exposed, err := f.node.Exposed(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for id, p := range exposed {
		if !slices.Contains(live, bridge.HostPort(p)) {
			errs = append(errs, f.node.Unexpose(ctx, id))
		}
	}
	return errors.Join(errs...)
}
