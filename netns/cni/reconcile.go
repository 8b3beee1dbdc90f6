package cni

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sync/errgroup"

	"github.com/subpod/subpod/netns"
)

const (
	// checkTimeout bounds the CHECK of all live pods at server start.
	checkTimeout = 20 * time.Second
	// parallel is how many pods are reconciled at a time.
	parallel = 4
)

// Reconcile implements netns.Network: DEL for pods that do not live, GC for what
// only the plugins know of, host ports of live pods, and CHECK of these. A pod that
// fails CHECK is named in the log: to connect it again under its feet would do more
// harm.
func (n *Network) Reconcile(ctx context.Context, live []netns.Pod) error {
	ids, err := n.Pods()
	if err != nil {
		return err
	}
	alive := map[string]bool{}
	for _, pod := range live {
		alive[pod.ID] = true
	}
	var mu sync.Mutex // of errs and kept
	var errs []error
	var kept []*attachment
	var group errgroup.Group
	group.SetLimit(parallel) // a pod whose plugin hangs does not keep the others waiting
	for _, id := range ids {
		group.Go(func() error {
			var a *attachment
			var err error
			if alive[id] {
				a, err = n.restore(ctx, id)
			} else {
				err = n.Teardown(ctx, id)
			}
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, err)
			if a != nil && a.Result != nil {
				kept = append(kept, a)
			}
			return nil
		})
	}
	_ = group.Wait()
	errs = append(errs, n.collect(ctx, kept))
	n.checkAll(ctx, kept)
	return errors.Join(errs...)
}

// restore gives a live pod its host ports again.
func (n *Network) restore(ctx context.Context, id string) (*attachment, error) {
	p, err := n.acquire(ctx, id)
	if err != nil {
		return nil, err
	}
	defer n.release(id, p)
	a, err := n.records.read(id)
	if err != nil || a == nil || a.Result == nil {
		return nil, err
	}
	if err := n.claims.Claim(a.Pod); err != nil {
		return a, fmt.Errorf("network of pod %s: %w", a.Pod, err)
	}
	if len(p.releases) > 0 {
		return a, nil
	}
	if err := n.expose(ctx, a.Pod, *a.Result, p); err != nil {
		return a, fmt.Errorf("network of pod %s: %w", a.Pod, err)
	}
	return a, nil
}

// collect asks for GC (CNI 1.1): DEL of attachments that libcni has in its cache and
// that no pod has, then the plugins' own.
func (n *Network) collect(ctx context.Context, kept []*attachment) error {
	list, err := n.network(ctx)
	if err != nil {
		return nil // Status reports it
	}
	args := &libcni.GCArgs{ValidAttachments: []types.GCAttachment{}}
	for _, a := range kept {
		args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: a.Pod.ID, IfName: interfaceName})
	}
	x := n.exec("GC")
	if err := x.explain(x.lib().GCNetworkList(ctx, list, args)); err != nil {
		return fmt.Errorf("CNI network %q: %w", list.Name, err)
	}
	return nil
}

// checkAll asks for CHECK of each pod, some at the same time.
func (n *Network) checkAll(ctx context.Context, kept []*attachment) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	var wg sync.WaitGroup
	slots := make(chan struct{}, parallel)
	for _, a := range kept {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			if err := n.check(ctx, a); err != nil {
				n.Log.Warn("the network of a pod is not as it was made: run the pod again", "pod", a.Pod.String(), "error", err)
			}
		})
	}
	wg.Wait()
}

// Check asks the plugins whether the pod is connected as ADD left it. nil for
// unknown IDs, and for configurations before CNI 0.4 or with disableCheck.
func (n *Network) Check(ctx context.Context, podID string) error {
	a, err := n.records.read(podID)
	if err != nil || a == nil {
		return err
	}
	return n.check(ctx, a)
}

func (n *Network) check(ctx context.Context, a *attachment) error {
	list, err := a.list()
	if err != nil {
		return err
	}
	x := n.exec("CHECK")
	err = x.explain(x.lib().CheckNetworkList(ctx, list, a.runtimeConf()))
	if errors.Is(err, libcni.ErrorCheckNotSupp) {
		return nil
	}
	return err
}

// SetPodCIDR implements netns.Network: plugins with the capability "ipRanges" get
// the subnets.
func (n *Network) SetPodCIDR(ctx context.Context, cidrs []netip.Prefix) error {
	if err := ctx.Err(); err != nil || len(cidrs) == 0 {
		return err
	}
	if _, err := netns.CheckSubnets(cidrs); err != nil {
		return fmt.Errorf("set the pods' subnets: %w", err)
	}
	return n.setRanges(cidrs)
}

// PodCIDR returns the subnets of the last SetPodCIDR.
func (n *Network) PodCIDR() []netip.Prefix {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.ranges)
}

// ResetPodCIDR makes cidrs, which PodCIDR has returned, the subnets again.
func (n *Network) ResetPodCIDR(cidrs []netip.Prefix) error { return n.setRanges(cidrs) }

func (n *Network) setRanges(cidrs []netip.Prefix) error {
	n.setting.Lock()
	defer n.setting.Unlock()
	if slices.Equal(cidrs, n.PodCIDR()) {
		return nil
	}
	if err := writeRanges(filepath.Join(n.StateDir, rangesFile), cidrs); err != nil {
		return fmt.Errorf("set the pods' subnets: %w", err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ranges = slices.Clone(cidrs)
	return nil
}
