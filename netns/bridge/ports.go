package bridge

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/subpod/subpod/netns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// portKey is a host port on an address. The unspecified address of a family
// stands for all of its addresses.
type portKey struct {
	proto  string
	hostIP netip.Addr
	port   uint16
}

// element is one entry of the rules' maps: portKey → address and port of a pod of
// the same family.
type element struct {
	portKey
	target netip.AddrPort
}

func protoNumber(name string) byte {
	switch name {
	case "tcp":
		return unix.IPPROTO_TCP
	case "udp":
		return unix.IPPROTO_UDP
	case "sctp":
		return unix.IPPROTO_SCTP
	}
	return 0
}

// elementsOf returns the entries of a pod. A mapping on an address of a family
// that the pod lacks has none: addresses are not translated between families.
func elementsOf(ports []netns.PortMapping, ips []netip.Addr) []element {
	var out []element
	for _, m := range ports {
		for _, host := range m.HostIPs() {
			i := slices.IndexFunc(ips, func(a netip.Addr) bool { return a.Is4() == host.Is4() })
			if i < 0 {
				continue
			}
			e := element{portKey{m.Proto, host, m.HostPort}, netip.AddrPortFrom(ips[i], m.ContainerPort)}
			if !slices.Contains(out, e) {
				out = append(out, e)
			}
		}
	}
	return out
}

// publish makes the pod's host ports lead to it, in the node network namespace
// and on the real host.
func (b *Bridge) publish(ctx context.Context, pod netns.Pod, ips []netip.Addr, p *podNet) error {
	if len(pod.Ports) == 0 {
		return nil
	}
	if len(ips) == 0 {
		return fmt.Errorf("%w: host ports for a pod without an address", netns.ErrBadPod)
	}
	if err := b.claims.Claim(pod); err != nil {
		return err
	}
	// Noted before it is done: whatever happens, unpublish tries to remove it.
	p.elements = elementsOf(pod.Ports, ips)
	if err := b.rules.add(p.elements); err != nil {
		return err
	}
	b.forgetFlows(p.elements)
	return b.expose(ctx, netns.ForwardsOf(pod.Ports, ips), p)
}

func (b *Bridge) expose(ctx context.Context, ports []netns.HostPort, p *podNet) error {
	if b.forward == nil {
		return nil
	}
	for _, f := range ports {
		release, err := b.forward.Expose(ctx, f)
		if release != nil {
			p.releases = append(p.releases, release)
		}
		if err != nil {
			return fmt.Errorf("publish %s port %d: %w", f.Proto, f.HostPort, err)
		}
	}
	return nil
}

// unpublish undoes publish. What fails stays in p.
func (b *Bridge) unpublish(ctx context.Context, podID string, p *podNet) error {
	var errs []error
	p.releases = slices.DeleteFunc(p.releases, func(release func(context.Context) error) bool {
		err := release(ctx)
		errs = append(errs, err)
		return err == nil
	})
	if len(p.elements) > 0 {
		err := b.rules.remove(p.elements)
		if err == nil {
			b.forgetFlows(p.elements)
			p.elements = nil
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("withdraw host ports: %w", err)
	}
	b.claims.Free(podID)
	return nil
}

// flowsTo matches tracked UDP flows to one of the host ports.
type flowsTo []element

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (f flowsTo) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	if flow.Forward.Protocol != unix.IPPROTO_UDP {
		return false
	}
	return slices.ContainsFunc(f, func(e element) bool { return e.port == flow.Forward.DstPort })
}

// forgetFlows drops what connection tracking knows of UDP traffic to the ports. A
// client that goes on sending from one port would otherwise stay bound to what
// the port led to when its first datagram came. A kernel that cannot do this is no
// reason to refuse the pod.
func (b *Bridge) forgetFlows(elements []element) {
	udp := slices.DeleteFunc(slices.Clone(elements), func(e element) bool { return e.proto != "udp" })
	if len(udp) == 0 {
		return
	}
	err := b.thread.Do(func() error {
		h, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		defer h.Close()
		var errs []error
		for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
			_, err := h.ConntrackDeleteFilters(netlink.ConntrackTable, family, flowsTo(udp))
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
	if err != nil {
		b.log.Warn("UDP clients of a host port may stay bound to where it led before", "error", err)
	}
}
