package bridge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/subpod/subpod/netns"
	"golang.org/x/sync/errgroup"
)

// Reconcile implements netns.Network.
func (b *Bridge) Reconcile(ctx context.Context, live []netns.Pod) error {
	var errs []error
	ids := map[string]bool{}
	for _, pod := range live {
		if err := checkPod(pod); err != nil {
			errs = append(errs, err)
			continue
		}
		ids[pod.ID] = true
	}
	live = slices.DeleteFunc(slices.Clone(live), func(p netns.Pod) bool { return !ids[p.ID] })
	for _, pod := range live {
		errs = append(errs, b.adoptAddresses(pod), b.ipam.setMAC(pod.ID, pod.MAC))
	}
	errs = append(errs, b.ipam.releaseAllBut(ids))
	forwards, err := b.restoreShared(ctx, live, ids)
	if errs = append(errs, err); errors.Is(err, errUnusable) {
		return errors.Join(errs...)
	}
	errs = append(errs, b.restoreForwards(ctx, forwards))
	b.ready.Store(true)
	if err := b.repairer.start(); err != nil {
		b.log.Warn("damage to the pod network will be noticed late", "error", err)
	}
	return errors.Join(errs...)
}

// errUnusable wraps an error without whose cause nothing of the network works.
var errUnusable = errors.New("pod network")

// restoreShared makes or repairs what all pods share, enters the live pods, and returns
// what the real host has to forward to them.
func (b *Bridge) restoreShared(ctx context.Context, live []netns.Pod, ids map[string]bool) (map[string][]netns.HostPort, error) {
	b.shared.Lock()
	defer b.shared.Unlock()
	err := b.device.setUp(func(s netip.Prefix) bool {
		return slices.ContainsFunc(live, func(p netns.Pod) bool {
			return slices.ContainsFunc(b.ipam.of(p.ID), s.Contains)
		})
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUnusable, err)
	}
	bridge := b.device.now()
	macs := map[string]net.HardwareAddr{}
	for id := range ids {
		macs[id] = b.ipam.mac(id)
	}
	errs := []error{b.links.sweep(macs, bridge.index)}
	forwards, err := b.restore(ctx, live, bridge.mtu)
	errs = append(errs, err, b.device.forgetOthers(b.ipam.taken))
	b.rules.noteSubnets(bridge.served)
	if err = b.rules.write(); err == nil {
		err = b.restoreIsolation(ctx, live)
	}
	if err != nil {
		return nil, errors.Join(append(errs, fmt.Errorf("%w: %w", errUnusable, err))...)
	}
	if err := b.restoreSecurity(live); err != nil && b.security.wanted() {
		errs = append(errs, err)
	} else if err != nil {
		b.log.Error("any pod can take over the address of another: the kernel module nf_tables_bridge is needed to prevent it", "error", err)
	}
	return forwards, errors.Join(errs...)
}

// restoreSecurity enters what the live pods may send.
func (b *Bridge) restoreSecurity(live []netns.Pod) error {
	for _, pod := range live {
		b.security.note(b.nft.link(pod.ID), sendersOf(b.ipam.mac(pod.ID), b.ipam.of(pod.ID)))
	}
	return b.security.write()
}

// restoreIsolation enters the live pods' ports, or removes what an earlier run with
// isolation left.
func (b *Bridge) restoreIsolation(ctx context.Context, live []netns.Pod) error {
	if b.isolate == nil {
		if err := dropIsolation(b.nft); err != nil {
			b.log.Warn("the rules of an earlier isolation may still be there", "error", err)
		}
		return nil
	}
	for _, pod := range live {
		p, err := b.pods.acquireKnown(ctx, pod.ID)
		if err != nil {
			return err
		}
		if p == nil {
			continue
		}
		port := b.isolate.port(pod)
		p.port = &port
		b.isolate.note(port)
		p.unlock()
	}
	return b.isolate.write()
}

// adoptAddresses claims what a live pod uses when the claims were lost.
func (b *Bridge) adoptAddresses(pod netns.Pod) error {
	if len(b.ipam.of(pod.ID)) > 0 {
		return nil
	}
	addrs, err := podAddresses(pod)
	if err != nil {
		return fmt.Errorf("addresses of pod %s: %w", pod.ID, err)
	}
	return b.ipam.adopt(pod.ID, addrs)
}

// restore enters the live pods that have addresses, and returns what leads to them.
func (b *Bridge) restore(ctx context.Context, live []netns.Pod, mtu int) (map[string][]netns.HostPort, error) {
	forwards := map[string][]netns.HostPort{}
	var errs []error
	var mu sync.Mutex // of forwards and errs
	var group errgroup.Group
	group.SetLimit(8) // looking into hundreds of namespaces takes a server's start
	for _, pod := range live {
		addrs := b.ipam.of(pod.ID)
		if len(addrs) == 0 {
			continue // its Setup was interrupted before it had any
		}
		group.Go(func() error {
			err := b.restorePod(ctx, pod, addrs, mtu)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, fmt.Errorf("network of pod %s: %w", pod.ID, err))
				return nil
			}
			forwards[pod.ID] = netns.ForwardsOf(pod.Ports, addrs)
			return nil
		})
	}
	_ = group.Wait()
	return forwards, errors.Join(errs...)
}

// restorePod enters a live pod as Setup left it. One whose Setup was interrupted stays
// out: doing it again completes it.
func (b *Bridge) restorePod(ctx context.Context, pod netns.Pod, addrs []netip.Addr, mtu int) error {
	prefixes, err := b.device.withSubnets(addrs)
	if err != nil {
		return err
	}
	if err := b.ports.claims.Claim(pod); err != nil {
		return err
	}
	p, err := b.pods.acquire(ctx, pod.ID)
	if err != nil {
		return err
	}
	defer p.unlock()
	link := b.links.intact(pod, addrs)
	if link == nil {
		return nil
	}
	mac := b.ipam.mac(pod.ID)
	if err := b.links.secureExisting(link, mac); err != nil {
		return err
	}
	if err := b.device.meet(addrs, mac); err != nil {
		return err
	}
	result := resultOf(pod, prefixes, mtu)
	result.MAC = mac.String()
	p.result = &result
	p.elements = append(elementsOf(pod.Ports, addrs), serviceElements(pod.Services, addrs)...)
	b.rules.note(p.elements)
	return nil
}

// restoreForwards makes the live pods' host ports lead to them on the real host again.
func (b *Bridge) restoreForwards(ctx context.Context, forwards map[string][]netns.HostPort) error {
	var errs []error
	for id, f := range forwards {
		p, err := b.pods.acquireKnown(ctx, id)
		if p == nil {
			errs = append(errs, err)
			continue
		}
		if p.result != nil && len(p.releases) == 0 {
			errs = append(errs, b.ports.expose(ctx, f, p))
		}
		p.unlock()
	}
	return errors.Join(errs...)
}
