package bridge

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/subpod/subpod/netns"
)

// undoTimeout bounds the clean-up after a failed Setup, whose own context may
// have ended.
const undoTimeout = 10 * time.Second

// Setup implements netns.Network.
func (b *Bridge) Setup(ctx context.Context, pod netns.Pod) (netns.Result, error) {
	if err := checkPod(pod); err != nil {
		return netns.Result{}, err
	}
	if err := ctx.Err(); err != nil {
		return netns.Result{}, err
	}
	p := b.lockPod(pod.ID, true)
	defer p.mu.Unlock()
	if p.result != nil {
		return *p.result, nil
	}
	result, err := b.connect(ctx, pod, p)
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		return netns.Result{}, errors.Join(fmt.Errorf("network of pod %s: %w", pod, err), b.disconnect(undo, pod.ID, p))
	}
	p.result = &result
	return result, nil
}

// connect is the sequence of Setup. What it has done is undone by disconnect.
func (b *Bridge) connect(ctx context.Context, pod netns.Pod, p *podNet) (netns.Result, error) {
	b.mu.Lock()
	ready, subnets, ifindex, mtu := b.ready, b.current, b.ifindex, b.mtu
	b.mu.Unlock()
	if !ready {
		return netns.Result{}, fmt.Errorf("%w: not reconciled yet", netns.ErrNotReady)
	}
	addrs, err := b.ipam.claim(pod.ID, subnets)
	if err != nil {
		return netns.Result{}, err
	}
	prefixes, err := b.withSubnets(addrs)
	if err != nil {
		return netns.Result{}, err
	}
	mac := macOf(addrs[0])
	if err := b.join(pod, p); err != nil {
		return netns.Result{}, err
	}
	if err := b.attach(pod, ifindex, mtu, mac); err != nil {
		return netns.Result{}, err
	}
	if prefixes, err = b.address(pod.NetNS, prefixes, pod.EgressRate, mtu); err != nil {
		return netns.Result{}, err
	}
	if err := b.limitIngress(pod, mtu); err != nil {
		return netns.Result{}, err
	}
	if err := b.awaitLink(ctx, vethName(pod.ID), ifindex); err != nil {
		return netns.Result{}, err
	}
	if err := b.awaitGateways(ifindex, prefixes); err != nil {
		return netns.Result{}, err
	}
	result := resultOf(prefixes, mtu)
	result.MAC = mac.String()
	if err := b.publish(ctx, pod, result.IPs, p); err != nil {
		return netns.Result{}, err
	}
	return result, nil
}

// awaitGateways returns once pods can find the gateways. The bridge is in service
// only since it has its first pod.
func (b *Bridge) awaitGateways(ifindex int, prefixes []netip.Prefix) error {
	b.mu.Lock()
	known := b.found == ifindex
	b.found = ifindex
	b.mu.Unlock()
	if known {
		return nil
	}
	return b.thread.Do(func() error {
		for _, p := range prefixes {
			awaitNeighbours(b.name, gatewayOf(p))
		}
		return nil
	})
}

// join lets the pod talk to those of its namespace, when namespaces are apart.
func (b *Bridge) join(pod netns.Pod, p *podNet) error {
	if !b.isolate {
		return nil
	}
	b.mu.Lock()
	port := b.apart.of(pod)
	b.mu.Unlock()
	p.port = &port
	return b.apart.add(port)
}

// withSubnets gives each address the length of its subnet's prefix.
func (b *Bridge) withSubnets(addrs []netip.Addr) ([]netip.Prefix, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []netip.Prefix
	for _, a := range addrs {
		i := slices.IndexFunc(b.prefixes, func(s netip.Prefix) bool { return s.Contains(a) })
		if i < 0 {
			return nil, fmt.Errorf("address %s is in no subnet of bridge %s", a, b.name)
		}
		out = append(out, netip.PrefixFrom(a, b.prefixes[i].Bits()))
	}
	return out, nil
}

func resultOf(addrs []netip.Prefix, mtu int) netns.Result {
	r := netns.Result{Interface: podInterface, MTU: mtu}
	for _, p := range addrs {
		r.IPs = append(r.IPs, p.Addr())
		r.Gateways = append(r.Gateways, gatewayOf(p))
	}
	return r
}

// checkPod refuses what could not work or would end up in a file or interface
// name.
func checkPod(pod netns.Pod) error {
	if len(pod.ID) < 13 || strings.Trim(pod.ID, "0123456789abcdefghijklmnopqrstuvwxyz-") != "" {
		return fmt.Errorf("%w: ID %q: want at least 13 lower-case letters and digits", netns.ErrBadPod, pod.ID)
	}
	return netns.CheckPorts(pod.Ports)
}

// Teardown implements netns.Network. The node's end of the link is only silenced:
// removing it takes the kernel some 25 ms, and it vanishes by itself with the
// pod's network namespace.
func (b *Bridge) Teardown(ctx context.Context, podID string) error {
	p := b.lockPod(podID, false)
	if p == nil {
		// Unknown since the server started, but it may have a claim on disk.
		return b.ipam.release(podID)
	}
	defer p.mu.Unlock()
	if err := b.disconnect(ctx, podID, p); err != nil {
		return fmt.Errorf("network of pod %s: %w", podID, err)
	}
	return nil
}

// disconnect frees everything that the pod has. What could not be freed stays in
// p, so that another Teardown tries again.
func (b *Bridge) disconnect(ctx context.Context, podID string, p *podNet) error {
	p.result = nil
	if err := b.unpublish(ctx, podID, p); err != nil {
		return err
	}
	if len(b.ipam.of(podID)) > 0 {
		// Nothing of the pod may reach the bridge once another can get its address.
		if err := b.silence(vethName(podID)); err != nil {
			return err
		}
	}
	if p.port != nil {
		if err := b.apart.remove(*p.port); err != nil {
			return err
		}
		p.port = nil
	}
	if err := b.ipam.release(podID); err != nil {
		return err
	}
	b.mu.Lock()
	delete(b.pods, podID)
	b.mu.Unlock()
	p.gone = true
	return nil
}
