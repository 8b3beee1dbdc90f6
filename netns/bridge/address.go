package bridge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/subpod/subpod/netns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// linkTimeout bounds the wait for a link that is up on both ends. Old kernels may
// take a second (linkwatch.c limits the rate).
const linkTimeout = 3 * time.Second

// awaitLink returns when the pod's bridge port and the bridge pass packets. The
// kernel brings a link into service a little after its carrier is there, and a
// first packet that comes too early costs its sender a second. Since Linux 6.8,
// asking for a link finishes that work at once (linkwatch_sync_dev).
func (l *links) awaitLink(ctx context.Context, port string, bridge int) error {
	// In this order: the port gives the bridge its carrier.
	err := awaitUp(ctx, port, func() (netlink.Link, error) { return l.rt.LinkByName(port) })
	if err != nil {
		return err
	}
	return awaitUp(ctx, "of the bridge", func() (netlink.Link, error) { return l.rt.LinkByIndex(bridge) })
}

// awaitUp asks for a link until it is in service.
func awaitUp(ctx context.Context, name string, get func() (netlink.Link, error)) error {
	ctx, cancel := context.WithTimeout(ctx, linkTimeout)
	defer cancel()
	for {
		link, err := get()
		if err != nil {
			return err
		}
		if link.Attrs().OperState == netlink.OperUp {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("link %s does not come up: %w", name, ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
}

// wanted is what connect gives a pod's interface.
type wanted struct {
	mac        net.HardwareAddr
	addrs      []netip.Prefix
	bridge     deviceState
	neighbours []*request // the pod's addresses on the bridge
	reused     bool       // an interrupted Setup left the link
	congestion string     // Options.Congestion
}

// connect makes the pod's link into the bridge with the addresses, and returns those in
// use.
func (l *links) connect(ctx context.Context, pod netns.Pod, w wanted) (used []netip.Prefix, err error) {
	if w.reused, err = l.attach(pod, w.bridge.index, w.bridge.mtu, w.mac); err != nil {
		return nil, err
	}
	return l.address(ctx, pod, w)
}

// address gives the pod's interface its addresses and default routes, sets up its bridge
// port, and removes other addresses that an interrupted Setup gave it. It returns the
// addresses in use: IPv6 ones are left out when a sysctl of the pod turned IPv6 off.
func (l *links) address(ctx context.Context, pod netns.Pod, w wanted) ([]netip.Prefix, error) {
	w.congestion = l.congestion
	name := interfaceOf(pod)
	err := netns.In(pod.NetNS, func() error {
		raw, err := openRaw()
		if err != nil {
			return err
		}
		defer raw.close()
		link, err := raw.link(name, 0)
		if err != nil {
			return err
		}
		if w.reused {
			if err := tidy(link, w); err != nil {
				return err
			}
		}
		hasIPv6, err := l.port(link.Attrs().ParentIndex, w)
		if err != nil {
			return err
		}
		if hasIPv6 && !l.security.wanted() {
			quietIPv6(name)
		}
		if w.addrs, err = w.bringUp(raw, link.Attrs().Index, pod, hasIPv6); err != nil {
			return err
		}
		if err := limitEgress(link, pod.EgressRate, w.bridge.mtu); err != nil {
			return err
		}
		for _, p := range w.addrs {
			here := func(f func() error) error { return f() }
			if err := awaitNeighbours(ctx, here, name, p.Addr()); err != nil {
				return err
			}
		}
		// Before its carrier is known, what the pod sends is dropped (noop_qdisc).
		return awaitUp(ctx, name, func() (netlink.Link, error) { return raw.link(name, link.Attrs().Index) })
	})
	if err != nil {
		return nil, fmt.Errorf("configure the pod's %s: %w", name, err)
	}
	return w.addrs, nil
}

// tidy gives a link that an interrupted Setup left, maybe with other addresses, its
// hardware address, and takes the other addresses off.
func tidy(link netlink.Link, w wanted) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	if !bytes.Equal(link.Attrs().HardwareAddr, w.mac) {
		if err := h.LinkSetHardwareAddr(link, w.mac); err != nil {
			return fmt.Errorf("set hardware address %s: %w", w.mac, err)
		}
		link.Attrs().HardwareAddr = w.mac
	}
	return removeOthers(h, link, w.addrs)
}

// port sets up the node's end of the pod's link, and reports whether the kernel has IPv6.
// It is before the pod's end is up, when the kernel would give it an address.
func (l *links) port(ifindex int, w wanted) (hasIPv6 bool, err error) {
	noAddress := addrGenRequest(ifindex, addrGenNone)
	noAddress.passes = lacksIPv6
	requests := slices.Concat([]*request{noAddress}, secureRequests(ifindex, w.mac), w.neighbours)
	err = l.raw.send(requests...)
	return noAddress.err == nil, err
}

// lacksIPv6 reports whether an error of addrGenRequest's says that the kernel has no IPv6.
func lacksIPv6(err error) bool { return errors.Is(err, unix.EAFNOSUPPORT) }

// awaitNeighbours returns once neighbours can find an IPv6 address, or after
// linkTimeout: then their first packets may be late. in runs a function on a thread of
// the address's network namespace. The kernel joins the group that neighbours ask in
// (RFC 4291, 2.7.1) in its own time, also without duplicate address detection, and
// whoever asks before that asks again only after a second.
func awaitNeighbours(ctx context.Context, in func(func() error) error, ifname string, a netip.Addr) error {
	if a.Is4() {
		return nil
	}
	for end := time.Now().Add(linkTimeout); time.Now().Before(end); {
		var found bool
		err := in(func() (err error) { found, err = inSolicitedGroup(ifname, a); return err })
		if errors.Is(err, netns.ErrClosed) {
			return err
		}
		if err != nil || found {
			return nil // without the file, there is nothing to wait for
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(500 * time.Microsecond):
		}
	}
	return nil
}

// inSolicitedGroup reports whether the interface, in the calling thread's network
// namespace, is in the multicast group that neighbours of the address ask in.
func inSolicitedGroup(ifname string, a netip.Addr) (bool, error) {
	groups, err := os.ReadFile("/proc/thread-self/net/igmp6")
	if err != nil {
		return false, err
	}
	ip := a.As16()
	want := fmt.Sprintf("%s ff0200000000000000000001ff%02x%02x%02x", ifname, ip[13], ip[14], ip[15])
	for line := range strings.Lines(string(groups)) {
		if strings.Contains(strings.Join(strings.Fields(line), " "), want) {
			return true, nil
		}
	}
	return false, nil
}

// addrGenNone leaves it to us to give an interface its IPv6 link-local address
// (IN6_ADDR_GEN_MODE_NONE of linux/if_link.h).
const addrGenNone = 1

// bringUp brings the pod's interface up, with the addresses, default routes and the
// link-local address that the kernel would give it, by one call. It returns the addresses
// in use: without those of IPv6 when a sysctl of the pod has turned it off. Left to itself
// the kernel looks for other owners of the link-local address, for a second and among all
// pods, and gives one to the node's end as well. It asks for none of the sysctls: looking
// up the first one in a new network namespace takes longer the more namespaces there are.
// A congestion control that the kernel does not have is left out.
func (w wanted) bringUp(raw *rawSocket, ifindex int, pod netns.Pod, hasIPv6 bool) ([]netip.Prefix, error) {
	local := addressRequest(ifindex, netip.PrefixFrom(linkLocalOf(w.mac), 64))
	off := func(error) bool { return errors.Is(local.err, unix.EACCES) }
	local.passes = off
	requests := []*request{addrGenRequest(ifindex, addrGenNone), upRequest(ifindex), local}
	addrs := w.addrs
	if !hasIPv6 {
		requests = []*request{upRequest(ifindex)}
		addrs = withoutIPv6(addrs)
	}
	for _, p := range addrs {
		some := []*request{addressRequest(ifindex, p)}
		if gw := gatewayOf(p); !pod.NoGateway {
			some = append(some, routeRequest(ifindex, gw, w.congestion), neighbourRequest(ifindex, gw, w.bridge.mac))
		}
		if p.Addr().Is6() {
			for _, q := range some {
				q.alsoPass(off)
			}
		}
		requests = append(requests, some...)
	}
	err := raw.send(requests...)
	if errors.Is(err, unix.EINVAL) && w.congestion != "" {
		w.congestion = ""
		return w.bringUp(raw, ifindex, pod, hasIPv6)
	}
	if err == nil && off(nil) {
		addrs = withoutIPv6(addrs)
	}
	return addrs, err
}

func withoutIPv6(all []netip.Prefix) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(all), func(p netip.Prefix) bool { return p.Addr().Is6() })
}

// linkLocalOf derives an interface's IPv6 link-local address from its hardware
// address (RFC 4291, appendix A).
func linkLocalOf(mac net.HardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80,
		8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]})
}

// quietIPv6 is what keeps a pod's interface from asking for routers, and from taking
// another pod for one, where the bridge cannot (portSecurity).
func quietIPv6(ifname string) {
	for _, key := range []string{"accept_ra", "router_solicitations"} {
		_ = setSysctl("net/ipv6/conf/"+ifname+"/"+key, 0) // read-only: then it is as it was
	}
}

// removeOthers takes addresses off the link that are neither wanted nor its link-local
// one.
func removeOthers(h *netlink.Handle, link netlink.Link, want []netip.Prefix) error {
	have, err := addresses(h, link)
	if err != nil {
		return err
	}
	for _, a := range have {
		p := prefixOf(a.IPNet)
		if p.Addr() == linkLocalOf(link.Attrs().HardwareAddr) || slices.Contains(want, p) {
			continue
		}
		if err := h.AddrDel(link, &a); err != nil {
			return fmt.Errorf("remove address %s: %w", p, err)
		}
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	a, _ := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if bits == 32 {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, ones)
}

// addresses lists the addresses of a link.
func addresses(h *netlink.Handle, link netlink.Link) ([]netlink.Addr, error) {
	return netns.Dump(func() ([]netlink.Addr, error) { return h.AddrList(link, netlink.FAMILY_ALL) })
}

// routeList lists the routes of the namespace of h, of both families.
func routeList(h *netlink.Handle) ([]netlink.Route, error) {
	return netns.Dump(func() ([]netlink.Route, error) { return h.RouteList(nil, netlink.FAMILY_ALL) })
}
