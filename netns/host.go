package netns

import (
	"context"
	"fmt"
	"net/netip"
)

// HostNetwork is the Network of a node that can give pods none of their own: no
// pod is ever set up, all are in the network that the daemon was started in.
type HostNetwork struct{}

// Setup implements Network: ErrNotReady.
func (HostNetwork) Setup(context.Context, Pod) (Result, error) {
	return Result{}, fmt.Errorf("%w: there is no network but the one that the daemon was started in", ErrNotReady)
}

// Teardown implements Network.
func (HostNetwork) Teardown(context.Context, string) error { return nil }

// Status implements Network: pods on the host's network can always run.
func (HostNetwork) Status(context.Context) error { return nil }

// Reconcile implements Network.
func (HostNetwork) Reconcile(context.Context, []Pod) error { return nil }

// SetPodCIDR implements Network. Addresses are not ours to give.
func (HostNetwork) SetPodCIDR(context.Context, []netip.Prefix) error { return nil }
