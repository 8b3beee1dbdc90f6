// Package hostport makes ports of the node network reachable on the real host, through
// the node's port driver: those of pods (Forwarder) and those of programs on the node's
// own network (Exposer).
package hostport

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/rootless"
)

// Driver listens on the host and forwards to the node network: *rootless.Node. What it
// forwards outlives the server.
type Driver interface {
	Expose(ctx context.Context, p rootless.PortSpec) (id int, err error)
	Unexpose(ctx context.Context, id int) error
	Exposed(ctx context.Context) (map[int]rootless.PortSpec, error)
}

// Forwarder publishes host ports on the real host. It implements
// netns.PortForwarder. A nil Forwarder is that of a node without a port driver: Network
// and Sweep work, and do nothing.
type Forwarder struct {
	driver Driver

	mu    sync.Mutex
	inUse map[int]bool // IDs of the driver that this server has asked for
}

// NewForwarder returns a forwarder for a driver.
func NewForwarder(driver Driver) *Forwarder {
	return &Forwarder{driver: driver, inUse: map[int]bool{}}
}

// Network returns what a netns.Network takes: an interface that is nil without a
// forwarder.
func (f *Forwarder) Network() netns.PortForwarder {
	if f == nil {
		return nil
	}
	return f
}

// Expose implements netns.PortForwarder. A port that an earlier run of the server
// forwarded to the same address is taken over. netns.ErrPortTaken when something else
// listens on the port.
func (f *Forwarder) Expose(ctx context.Context, p netns.HostPort) (release func(context.Context) error, err error) {
	want := rootless.PortSpec(p)
	id, err := f.driver.Expose(ctx, want)
	if errors.Is(err, rootless.ErrPortTaken) {
		id, err = f.find(ctx, want, err)
	}
	if errors.Is(err, rootless.ErrPortTaken) {
		return nil, fmt.Errorf("%w on the host: %w", netns.ErrPortTaken, err)
	}
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	f.inUse[id] = true
	f.mu.Unlock()
	return func(ctx context.Context) error { return f.release(ctx, id) }, nil
}

// release ends one forwarding. Idempotent.
func (f *Forwarder) release(ctx context.Context, id int) error {
	if err := f.driver.Unexpose(ctx, id); err != nil {
		return err
	}
	f.mu.Lock()
	delete(f.inUse, id)
	f.mu.Unlock()
	return nil
}

// find returns the ID of a forwarding equal to want that an earlier run of the server
// made, or the error taken. The driver is asked without the lock; of two callers that
// want the same one, the first gets it.
func (f *Forwarder) find(ctx context.Context, want rootless.PortSpec, taken error) (int, error) {
	exposed, err := f.driver.Exposed(ctx)
	if err != nil {
		return 0, errors.Join(taken, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, p := range exposed {
		if p == want && !f.inUse[id] {
			f.inUse[id] = true
			return id, nil
		}
	}
	return 0, taken
}

// Sweep ends the forwardings that an earlier run of the server made and this one has
// not taken over. It is called once, when all pods are recovered.
func (f *Forwarder) Sweep(ctx context.Context) error {
	if f == nil {
		return nil
	}
	exposed, err := f.driver.Exposed(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for id := range exposed {
		f.mu.Lock()
		inUse := f.inUse[id]
		f.mu.Unlock()
		if !inUse {
			errs = append(errs, f.driver.Unexpose(ctx, id))
		}
	}
	return errors.Join(errs...)
}
