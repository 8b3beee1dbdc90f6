package bridge

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
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
	p, err := b.pods.acquire(ctx, pod.ID)
	if err != nil {
		return netns.Result{}, fmt.Errorf("network of pod %s: wait for another operation on it: %w", pod, err)
	}
	defer p.unlock()
	if p.result != nil {
		return *p.result, nil
	}
	repairs := b.repairer.repairs.Load()
	result, err := b.connect(ctx, pod, p)
	// What is published on the real host already is not damaged, and cannot be published twice.
	if err != nil && len(p.releases) == 0 && repairedSince(b, repairs) {
		result, err = b.connect(ctx, pod, p)
	}
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		return netns.Result{}, errors.Join(fmt.Errorf("network of pod %s: %w", pod, err), b.disconnect(undo, pod.ID, p))
	}
	p.result = &result
	return result, nil
}

// repairedSince reports whether something of the network was damaged since there had been so
// many repairs, and has the repair done where the repairer has not come to it yet. What
// cannot be repaired is the repairer's to report.
func repairedSince(b *Bridge, repairs uint64) bool {
	if b.ready.Load() {
		_, _, _ = b.repairer.repair()
	}
	return b.repairer.repairs.Load() != repairs
}

// connect is the sequence of Setup. Idempotent: it goes on with what an interrupted one has
// left. disconnect undoes whatever it did.
func (b *Bridge) connect(ctx context.Context, pod netns.Pod, p *podNet) (netns.Result, error) {
	if !b.ready.Load() {
		return netns.Result{}, fmt.Errorf("%w: not reconciled yet", netns.ErrNotReady)
	}
	bridge := b.device.now()
	addrs, err := b.ipam.claim(pod.ID, bridge.subnets, pod.Addresses...)
	if err != nil {
		return netns.Result{}, err
	}
	if err := b.ipam.setMAC(pod.ID, pod.MAC); err != nil {
		return netns.Result{}, err
	}
	prefixes, err := b.device.withSubnets(addrs)
	if err != nil {
		return netns.Result{}, err
	}
	mac := b.ipam.mac(pod.ID)
	// Both at the same time: whatever a port sends that is not admitted yet is dropped.
	admitted := make(chan error, 1)
	go func() { admitted <- b.admit(pod, p, addrs) }()
	prefixes, err = b.links.connect(ctx, pod, wanted{mac: mac, addrs: prefixes, bridge: bridge,
		neighbours: b.device.meetRequests(b.ipam.of(pod.ID), mac)})
	if err = errors.Join(<-admitted, err); err != nil {
		return netns.Result{}, err
	}
	if err := b.links.limitIngress(pod, bridge.mtu); err != nil {
		return netns.Result{}, err
	}
	if err := b.links.awaitLink(ctx, b.nft.link(pod.ID), bridge.index); err != nil {
		return netns.Result{}, err
	}
	if err := b.device.awaitGateways(ctx, bridge.index, prefixes); err != nil {
		return netns.Result{}, err
	}
	result := resultOf(pod, prefixes, bridge.mtu)
	result.MAC = mac.String()
	if err := b.ports.publish(ctx, pod, result.IPs, p); err != nil {
		return netns.Result{}, err
	}
	return result, nil
}

func resultOf(pod netns.Pod, addrs []netip.Prefix, mtu int) netns.Result {
	r := netns.Result{Interface: interfaceOf(pod), MTU: mtu}
	for _, p := range addrs {
		r.IPs = append(r.IPs, p.Addr())
		if !pod.NoGateway {
			r.Gateways = append(r.Gateways, gatewayOf(p))
		}
	}
	return r
}

// checkPod returns ErrBadPod for what could not work, or for an ID that is no part of
// a file or interface name.
func checkPod(pod netns.Pod) error {
	if len(pod.ID) < 13 || strings.Trim(pod.ID, "0123456789abcdefghijklmnopqrstuvwxyz-") != "" {
		return fmt.Errorf("%w: ID %q: want at least 13 lower-case letters and digits", netns.ErrBadPod, pod.ID)
	}
	for _, s := range pod.Services {
		for _, p := range s.Ports {
			if p.Port == 0 || p.TargetPort == 0 || protoNumber(p.Proto) == 0 {
				return fmt.Errorf("%w: service port %s %d → %d", netns.ErrBadPod, p.Proto, p.Port, p.TargetPort)
			}
		}
	}
	return netns.CheckPorts(pod.Ports)
}

// Teardown implements netns.Network. The node's end of the link is only silenced:
// removing it takes the kernel some 25 ms, and it vanishes by itself with the
// pod's network namespace.
func (b *Bridge) Teardown(ctx context.Context, podID string) error {
	p, err := b.pods.acquireKnown(ctx, podID)
	if err != nil {
		return fmt.Errorf("network of pod %s: wait for another operation on it: %w", podID, err)
	}
	if p == nil {
		// Unknown since the server started, but it may have a claim on disk.
		return errors.Join(b.security.remove(b.nft.link(podID)), b.ipam.release(podID))
	}
	defer p.unlock()
	if err := b.disconnect(ctx, podID, p); err != nil {
		return fmt.Errorf("network of pod %s: %w", podID, err)
	}
	return nil
}

// disconnect frees everything that the pod has. What could not be freed stays in
// p, so that another Teardown tries again.
func (b *Bridge) disconnect(ctx context.Context, podID string, p *podNet) error {
	p.result = nil
	if err := b.ports.unpublish(ctx, podID, p); err != nil {
		return err
	}
	if len(b.ipam.of(podID)) > 0 {
		// Nothing of the pod may reach the bridge once another can get its address.
		if err := b.links.silence(b.nft.link(podID)); err != nil {
			return err
		}
	}
	if p.port != nil {
		if err := b.isolate.remove(*p.port); err != nil {
			return err
		}
		p.port = nil
	}
	if err := b.security.remove(b.nft.link(podID)); err != nil {
		return err
	}
	if err := b.device.forget(b.ipam.of(podID)); err != nil {
		return err
	}
	if err := b.ipam.release(podID); err != nil {
		return err
	}
	b.pods.remove(podID, p)
	return nil
}
