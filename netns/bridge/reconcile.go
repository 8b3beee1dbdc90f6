package bridge

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/subpod/subpod/netns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
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
		errs = append(errs, b.adoptAddresses(pod))
	}
	errs = append(errs, b.ipam.releaseAllBut(ids))
	if err := b.makeBridge(live); err != nil {
		// Without the bridge nothing of the rest can work.
		return errors.Join(append(errs, fmt.Errorf("pod network: %w", err))...)
	}
	errs = append(errs, b.sweepLinks(ids))
	elements, forwards, restoreErr := b.restore(live)
	errs = append(errs, restoreErr)
	b.mu.Lock()
	prefixes := slices.Clone(b.prefixes)
	b.mu.Unlock()
	if err := b.rules.replace(prefixes, elements); err != nil {
		return errors.Join(append(errs, fmt.Errorf("pod network: %w", err))...)
	}
	if err := b.restoreIsolation(live); err != nil {
		return errors.Join(append(errs, fmt.Errorf("pod network: %w", err))...)
	}
	err := b.rules.dropChatter()
	b.quiet.Store(err == nil)
	if err != nil {
		b.log.Warn("pods see each other's IPv6 multicast reports: with hundreds of pods new ones are slower; the kernel module nf_tables_bridge is needed", "error", err)
	}
	errs = append(errs, b.restoreForwards(ctx, forwards))
	b.mu.Lock()
	b.ready = true
	b.mu.Unlock()
	if b.watch == nil {
		if err := b.startWatch(); err != nil {
			b.log.Warn("damage to the pod network will be noticed late", "error", err)
		}
	}
	return errors.Join(errs...)
}

// restoreIsolation enters the live pods' ports, or removes what an earlier run with
// isolation left.
func (b *Bridge) restoreIsolation(live []netns.Pod) error {
	if !b.isolate {
		if err := b.apart.drop(); err != nil {
			b.log.Warn("the rules of an earlier isolation may still be there", "error", err)
		}
		return nil
	}
	var ports []isolatedPort
	for _, pod := range live {
		p := b.lockPod(pod.ID, false)
		if p == nil {
			continue
		}
		b.mu.Lock()
		port := b.apart.of(pod)
		b.mu.Unlock()
		p.port = &port
		ports = append(ports, port)
		p.mu.Unlock()
	}
	return b.apart.replace(ports)
}

// adoptAddresses claims what a live pod uses when the claims were lost.
func (b *Bridge) adoptAddresses(pod netns.Pod) error {
	if len(b.ipam.of(pod.ID)) > 0 {
		return nil
	}
	var addrs []netip.Addr
	err := netns.In(pod.NetNS, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		link, err := h.LinkByName(podInterface)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			return nil // never set up
		}
		if err != nil {
			return err
		}
		list, err := addresses(h, link)
		for _, a := range list {
			if p := prefixOf(a.IPNet); !p.Addr().IsLinkLocalUnicast() {
				addrs = append(addrs, p.Addr())
			}
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("addresses of pod %s: %w", pod.ID, err)
	}
	return b.ipam.adopt(pod.ID, addrs)
}

// restore enters the live pods that have addresses, and returns what leads to them.
func (b *Bridge) restore(live []netns.Pod) ([]element, map[*podNet][]netns.HostPort, error) {
	var errs []error
	var elements []element
	forwards := map[*podNet][]netns.HostPort{}
	b.mu.Lock()
	mtu := b.mtu
	b.mu.Unlock()
	var mu sync.Mutex // of elements and forwards
	var group errgroup.Group
	group.SetLimit(8) // looking into hundreds of namespaces takes a server's start
	for _, pod := range live {
		addrs := b.ipam.of(pod.ID)
		if len(addrs) == 0 {
			continue // its Setup was interrupted before it had any
		}
		prefixes, err := b.withSubnets(addrs)
		if err == nil {
			err = b.claims.Claim(pod)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("network of pod %s: %w", pod.ID, err))
			continue
		}
		group.Go(func() error {
			p := b.lockPod(pod.ID, true)
			defer p.mu.Unlock()
			if !b.intact(pod, addrs) {
				return nil
			}
			result := resultOf(prefixes, mtu)
			result.MAC = macOf(addrs[0]).String()
			p.result = &result
			p.elements = elementsOf(pod.Ports, addrs)
			mu.Lock()
			defer mu.Unlock()
			elements = append(elements, p.elements...)
			forwards[p] = netns.ForwardsOf(pod.Ports, addrs)
			return nil
		})
	}
	_ = group.Wait()
	return elements, forwards, errors.Join(errs...)
}

// intact reports whether the pod's link exists and has the addresses. When not,
// Setup was interrupted, and doing it again completes it.
func (b *Bridge) intact(pod netns.Pod, want []netip.Addr) bool {
	if _, err := b.links.rt.LinkByName(vethName(pod.ID)); err != nil {
		return false
	}
	var have []netip.Addr
	missing := func(a netip.Addr) bool { return !slices.Contains(have, a) }
	err := netns.In(pod.NetNS, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		link, err := h.LinkByName(podInterface)
		if err != nil {
			return err
		}
		list, err := addresses(h, link)
		for _, a := range list {
			have = append(have, prefixOf(a.IPNet).Addr())
		}
		if slices.ContainsFunc(want, missing) && ipv6Off(podInterface) {
			want = slices.DeleteFunc(slices.Clone(want), netip.Addr.Is6)
		}
		return err
	})
	return err == nil && !slices.ContainsFunc(want, missing)
}

func (b *Bridge) restoreForwards(ctx context.Context, forwards map[*podNet][]netns.HostPort) error {
	if b.forward == nil {
		return nil
	}
	var errs []error
	for p, f := range forwards {
		p.mu.Lock()
		errs = append(errs, b.expose(ctx, f, p))
		p.mu.Unlock()
	}
	return errors.Join(errs...)
}

// makeBridge makes the bridge or repairs it, with a gateway address in every
// subnet that a pod may have an address in.
func (b *Bridge) makeBridge(live []netns.Pod) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.mtu == 0 {
		b.mtu = b.uplinkMTU()
	}
	old, err := b.bridgePrefixes()
	if err != nil {
		return err
	}
	link, err := b.bridgeLink()
	if err != nil {
		return err
	}
	b.ifindex = link.Attrs().Index
	b.prefixes = nil
	// Subnets that were in use before stay as long as a pod lives in them.
	keep := slices.Clone(b.current)
	for _, s := range old {
		used := slices.ContainsFunc(live, func(p netns.Pod) bool {
			return slices.ContainsFunc(b.ipam.of(p.ID), s.Contains)
		})
		switch {
		case slices.Contains(keep, s):
		case used:
			keep = append(keep, s)
		default:
			a := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(gatewayOf(s), s.Bits()))}
			if err := b.links.rt.AddrDel(link, a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
				return fmt.Errorf("remove gateway of %s: %w", s, err)
			}
		}
	}
	if err := b.addGateways(keep); err != nil {
		return err
	}
	return b.thread.Do(b.sysctls)
}

func (b *Bridge) bridgeLink() (netlink.Link, error) {
	rt := b.links.rt
	link, err := rt.LinkByName(b.name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = b.name, b.mtu
		// An address of its own: else the bridge takes that of its first port, and
		// changes it when that pod goes.
		attrs.HardwareAddr = macOf(gatewayOf(b.current[0]))
		// With multicast snooping, the kernel goes to work on all ports whenever one is
		// added, and without a querier it would flood multicast to them all the same.
		snooping := false
		if err := rt.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}); err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, fmt.Errorf("make bridge %s: %w", b.name, err)
		}
		link, err = rt.LinkByName(b.name)
	}
	if err != nil {
		return nil, fmt.Errorf("bridge %s: %w", b.name, err)
	}
	if link.Type() != "bridge" {
		return nil, fmt.Errorf("interface %s exists and is no bridge but %s: configure another name", b.name, link.Type())
	}
	if link.Attrs().MTU != b.mtu {
		if err := rt.LinkSetMTU(link, b.mtu); err != nil {
			return nil, fmt.Errorf("set MTU %d of bridge %s: %w", b.mtu, b.name, err)
		}
	}
	if err := rt.LinkSetUp(link); err != nil {
		return nil, fmt.Errorf("bring up bridge %s: %w", b.name, err)
	}
	return link, nil
}

// addGateways gives the bridge its address in each subnet. b.mu is held.
func (b *Bridge) addGateways(subnets []netip.Prefix) error {
	for _, s := range subnets {
		gw := netip.PrefixFrom(gatewayOf(s), s.Bits())
		a := &netlink.Addr{IPNet: ipNet(gw)}
		if gw.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Index: b.ifindex, Name: b.name}}
		if err := b.links.rt.AddrReplace(link, a); err != nil {
			return fmt.Errorf("add gateway %s to bridge %s: %w", gw, b.name, err)
		}
		if !slices.Contains(b.prefixes, s) {
			b.prefixes = append(b.prefixes, s)
		}
	}
	return nil
}

// uplinkMTU returns the MTU of the default route's interface, or the biggest that
// slirp4netns' interface can have.
func (b *Bridge) uplinkMTU() int {
	const biggest = 65520
	routes, err := routeList(b.links.rt)
	if err != nil {
		return biggest
	}
	for _, r := range routes {
		if r.Dst != nil && prefixOf(r.Dst).Bits() > 0 {
			continue
		}
		if link, err := b.links.rt.LinkByIndex(r.LinkIndex); err == nil && link.Attrs().Name != b.name {
			return min(link.Attrs().MTU, biggest)
		}
	}
	return biggest
}

// sweepLinks removes links of pods that do not live, and puts those that do back
// into the bridge.
func (b *Bridge) sweepLinks(live map[string]bool) error {
	names := map[string]bool{}
	for id := range live {
		names[vethName(id)] = true
	}
	list, err := netns.Dump(b.links.rt.LinkList)
	if err != nil {
		return fmt.Errorf("list links of the node: %w", err)
	}
	var errs []error
	for _, l := range list {
		a := l.Attrs()
		if l.Type() != "veth" || !strings.HasPrefix(a.Name, vethPrefix) || len(a.Name) != unix.IFNAMSIZ-1 {
			continue
		}
		switch {
		case !names[a.Name]:
			// It may be going already, with its namespace.
			if err := b.links.rt.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
				errs = append(errs, fmt.Errorf("remove orphan link %s: %w", a.Name, err))
			}
		case a.MasterIndex != b.ifindex:
			if err := b.enslave(l, b.ifindex); err != nil {
				errs = append(errs, fmt.Errorf("put link %s back into bridge %s: %w", a.Name, b.name, err))
			}
		}
	}
	return errors.Join(errs...)
}
