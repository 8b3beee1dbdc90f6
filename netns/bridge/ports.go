package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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
	target  netip.AddrPort
	service bool // for pods of the same network only
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
			e := element{portKey{m.Proto, host, m.HostPort}, netip.AddrPortFrom(ips[i], m.ContainerPort), false}
			if !slices.Contains(out, e) {
				out = append(out, e)
			}
		}
	}
	return out
}

// hostPorts publishes ports of pods in the node network namespace and on the real host.
type hostPorts struct {
	thread  *netns.Thread
	rules   *rules
	claims  netns.PortClaims
	forward netns.PortForwarder // nil: not on the real host
	log     *slog.Logger
}

// publish makes the pod's host ports lead to it.
func (h *hostPorts) publish(ctx context.Context, pod netns.Pod, ips []netip.Addr, p *podNet) error {
	if len(pod.Ports)+len(pod.Services) == 0 {
		return nil
	}
	if len(ips) == 0 {
		return fmt.Errorf("%w: host ports for a pod without an address", netns.ErrBadPod)
	}
	if err := h.claims.Claim(pod); err != nil {
		return err
	}
	// Noted before it is done: whatever happens, unpublish tries to remove it.
	p.elements = append(elementsOf(pod.Ports, ips), serviceElements(pod.Services, ips)...)
	if err := h.rules.add(p.elements); err != nil {
		return err
	}
	h.forgetFlows(p.elements)
	return h.expose(ctx, netns.ForwardsOf(pod.Ports, ips), p)
}

func (h *hostPorts) expose(ctx context.Context, ports []netns.HostPort, p *podNet) error {
	if h.forward == nil {
		return nil
	}
	for _, f := range ports {
		release, err := h.forward.Expose(ctx, f)
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
func (h *hostPorts) unpublish(ctx context.Context, podID string, p *podNet) error {
	var errs []error
	p.releases = slices.DeleteFunc(p.releases, func(release func(context.Context) error) bool {
		err := release(ctx)
		errs = append(errs, err)
		return err == nil
	})
	if len(p.elements) > 0 {
		err := h.rules.remove(p.elements)
		if err == nil {
			h.forgetFlows(p.elements)
			p.elements = nil
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("withdraw host ports: %w", err)
	}
	h.claims.Free(podID)
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

// forgetFlows deletes the tracked UDP flows to the ports. A client that goes on sending
// from one port would otherwise stay bound to what the port led to when its first
// datagram came. A kernel that cannot do this is no reason to refuse the pod.
func (h *hostPorts) forgetFlows(elements []element) {
	udp := slices.DeleteFunc(slices.Clone(elements), func(e element) bool { return e.proto != "udp" })
	if len(udp) == 0 {
		return
	}
	// The thread makes the socket, but the look at all flows of the node is not its.
	var handle *netlink.Handle
	err := h.thread.Do(func() (err error) {
		handle, err = netlink.NewHandle(unix.NETLINK_NETFILTER)
		return err
	})
	if err == nil {
		defer handle.Close()
		for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
			_, one := handle.ConntrackDeleteFilters(netlink.ConntrackTable, family, flowsTo(udp))
			err = errors.Join(err, one)
		}
	}
	if err != nil {
		h.log.Warn("UDP clients of a host port may stay bound to where it led before", "error", err)
	}
}
