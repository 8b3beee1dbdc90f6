// Package auto is the pod network that the CNI configuration directories decide on,
// pod by pod: by CNI plugins while there is a configuration, else the built-in
// bridge. A cluster's network is often installed by pods that run before it.
package auto

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/netns/bridge"
	"github.com/subpod/subpod/netns/cni"
)

// Network implements netns.Network.
type Network struct {
	cni    *cni.Network
	bridge *bridge.Bridge
	log    *slog.Logger

	making chan struct{} // holds an element while the bridge is being made

	setting sync.Mutex // held by SetPodCIDR

	mu       sync.Mutex // guards what follows; never held across anything that may wait
	inUse    string     // the configuration that was used last, "" the bridge
	logged   bool
	bridged  bool                 // the bridge is made
	onBridge map[string]netns.Pod // by ID
}

var _ netns.Network = (*Network)(nil)

// NotOurs is the cni.Options.Skip of a network that nobody has configured by name: the
// files in the host's /etc were made for the machine's root, with its addresses, and
// Podman writes its own networks where everyone looks. In the node, the
// host's files are links; a cluster's network writes real ones.
func NotOurs(path string) bool {
	target, err := os.Readlink(path)
	return err == nil && strings.HasPrefix(target, "/etc/.host/") || strings.HasPrefix(filepath.Base(path), "87-podman")
}

// New combines the two.
func New(c *cni.Network, b *bridge.Bridge, log *slog.Logger) *Network {
	return &Network{cni: c, bridge: b, log: log, making: make(chan struct{}, 1), onBridge: map[string]netns.Pod{}}
}

// current returns the network of pods made now. The bridge is made when it is
// needed first: its subnet may be that of the configured network.
func (n *Network) current(ctx context.Context) (netns.Network, error) {
	conf := n.cni.Configured()
	n.mu.Lock()
	changed := conf != n.inUse || !n.logged
	n.logged, n.inUse = true, conf
	n.mu.Unlock()
	if changed {
		if conf != "" {
			n.log.Info("pods are connected by CNI plugins", "configuration", conf)
		} else {
			n.log.Info("pods are connected by the built-in bridge: there is no CNI configuration")
		}
	}
	if conf != "" {
		return n.cni, nil
	}
	if err := n.makeBridge(ctx); err != nil {
		return nil, fmt.Errorf("%w: %w", netns.ErrNotReady, err)
	}
	return n.bridge, nil
}

// makeBridge makes the bridge unless it is there. Pods that are on it from before keep
// their addresses and links, also when it could not be made at server start.
func (n *Network) makeBridge(ctx context.Context) error {
	select {
	case n.making <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-n.making }()
	n.mu.Lock()
	bridged, live := n.bridged, slices.Collect(maps.Values(n.onBridge))
	n.mu.Unlock()
	if bridged {
		return nil
	}
	err := n.bridge.Reconcile(ctx, live)
	if err != nil && !n.bridgeWorks(ctx) {
		return err
	}
	if err != nil {
		n.log.Warn("the bridge works, but not all that its pods had could be restored", "error", err)
	}
	n.mu.Lock()
	n.bridged = true
	n.mu.Unlock()
	return nil
}

// bridgeWorks reports whether the bridge can connect pods.
func (n *Network) bridgeWorks(ctx context.Context) bool {
	err := n.bridge.Status(ctx)
	return err == nil || errors.Is(err, bridge.ErrNoPodCIDR)
}

// Setup implements netns.Network.
func (n *Network) Setup(ctx context.Context, pod netns.Pod) (netns.Result, error) {
	n.mu.Lock()
	_, bridged := n.onBridge[pod.ID]
	n.mu.Unlock()
	if bridged {
		return n.bridge.Setup(ctx, pod)
	}
	if has, err := n.cni.Has(pod.ID); err != nil || has {
		if err != nil {
			return netns.Result{}, err
		}
		return n.cni.Setup(ctx, pod)
	}
	now, err := n.current(ctx)
	if err != nil {
		return netns.Result{}, err
	}
	if now == netns.Network(n.bridge) {
		n.mu.Lock()
		n.onBridge[pod.ID] = pod
		n.mu.Unlock()
	}
	return now.Setup(ctx, pod)
}

// Teardown implements netns.Network.
func (n *Network) Teardown(ctx context.Context, podID string) error {
	err := errors.Join(n.cni.Teardown(ctx, podID), n.bridge.Teardown(ctx, podID))
	if err == nil {
		n.mu.Lock()
		delete(n.onBridge, podID)
		n.mu.Unlock()
	}
	return err
}

// Status implements netns.Network.
func (n *Network) Status(ctx context.Context) error {
	now, err := n.current(ctx)
	if err != nil {
		return err
	}
	return now.Status(ctx)
}

// Reconcile implements netns.Network.
func (n *Network) Reconcile(ctx context.Context, live []netns.Pod) error {
	var byCNI, byBridge []netns.Pod
	for _, pod := range live {
		has, err := n.cni.Has(pod.ID)
		if err != nil {
			return err
		}
		if has {
			byCNI = append(byCNI, pod)
		} else {
			byBridge = append(byBridge, pod)
		}
	}
	errs := []error{n.cni.Reconcile(ctx, byCNI)}
	if n.cni.Configured() == "" || len(byBridge) > 0 || n.bridge.InUse() {
		n.mu.Lock()
		for _, pod := range byBridge {
			n.onBridge[pod.ID] = pod
		}
		n.mu.Unlock()
		err := n.bridge.Reconcile(ctx, byBridge)
		errs = append(errs, err)
		made := err == nil || n.bridgeWorks(ctx)
		n.mu.Lock()
		n.bridged = made
		n.mu.Unlock()
	}
	_, err := n.current(ctx)
	return errors.Join(append(errs, err)...)
}

// SetPodCIDR implements netns.Network. Both networks get the subnets, or neither.
func (n *Network) SetPodCIDR(ctx context.Context, cidrs []netip.Prefix) error {
	n.setting.Lock()
	defer n.setting.Unlock()
	before := n.cni.PodCIDR()
	if err := n.cni.SetPodCIDR(ctx, cidrs); err != nil {
		return err
	}
	if err := n.bridge.SetPodCIDR(ctx, cidrs); err != nil {
		return errors.Join(err, n.cni.ResetPodCIDR(before))
	}
	return nil
}
