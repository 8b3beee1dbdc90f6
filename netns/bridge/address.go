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

// route makes the pod's default route by gw. A congestion control that the kernel does
// not have is left out.
func (l *links) route(h *netlink.Handle, link netlink.Link, gw netip.Addr) error {
	r := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: gw.AsSlice(), Dst: defaultNet(gw), Congctl: l.congestion}
	err := h.RouteReplace(r)
	if errors.Is(err, unix.EINVAL) && r.Congctl != "" {
		r.Congctl = ""
		err = h.RouteReplace(r)
	}
	return err
}

// address gives the pod's interface its addresses and default routes, and removes
// others that an interrupted Setup gave it. It returns the addresses in use: IPv6 ones
// are left out when a sysctl of the pod turned IPv6 off.
func (l *links) address(ctx context.Context, pod netns.Pod, mac net.HardwareAddr, addrs []netip.Prefix, bridge deviceState) ([]netip.Prefix, error) {
	var used []netip.Prefix
	name := interfaceOf(pod)
	err := netns.In(pod.NetNS, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		link, err := h.LinkByName(name)
		if err != nil {
			return err
		}
		// A link that an interrupted Setup left may be of another address.
		if !bytes.Equal(link.Attrs().HardwareAddr, mac) {
			if err := h.LinkSetHardwareAddr(link, mac); err != nil {
				return fmt.Errorf("set hardware address %s: %w", mac, err)
			}
			link.Attrs().HardwareAddr = mac
		}
		if err := removeOthers(h, link, addrs); err != nil {
			return err
		}
		hasIPv6, err := l.bringUp(h, link)
		if err != nil {
			return err
		}
		if !hasIPv6 {
			addrs = slices.DeleteFunc(slices.Clone(addrs), func(p netip.Prefix) bool { return p.Addr().Is6() })
		}
		used = addrs
		for _, p := range addrs {
			a := &netlink.Addr{IPNet: ipNet(p)}
			if p.Addr().Is6() {
				a.Flags = unix.IFA_F_NODAD
			}
			if err := h.AddrReplace(link, a); err != nil {
				return fmt.Errorf("add address %s: %w", p, err)
			}
			if pod.NoGateway {
				continue
			}
			gw := gatewayOf(p)
			if err := l.route(h, link, gw); err != nil {
				return fmt.Errorf("add default route via %s: %w", gw, err)
			}
			if err := enter(h, neighbour(link.Attrs().Index, gw, bridge.mac)); err != nil {
				return err
			}
		}
		if err := l.secure(link.Attrs().ParentIndex, mac); err != nil {
			return err
		}
		if err := limit(h, link, pod.EgressRate, bridge.mtu); err != nil {
			return err
		}
		for _, p := range addrs {
			here := func(f func() error) error { return f() }
			if err := awaitNeighbours(ctx, here, name, p.Addr()); err != nil {
				return err
			}
		}
		// Before its carrier is known, what the pod sends is dropped (noop_qdisc).
		return awaitUp(ctx, name, func() (netlink.Link, error) {
			return h.LinkByIndex(link.Attrs().Index)
		})
	})
	if err != nil {
		return nil, fmt.Errorf("configure the pod's %s: %w", name, err)
	}
	return used, nil
}

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

// bringUp brings the pod's interface up, with the link-local address that the kernel
// would give it, and reports whether it has IPv6 at all: the kernel may not, and a
// sysctl of the pod may have turned it off. Left to itself the kernel looks for
// other owners of the address, for a second and among all pods, and gives one to the
// node's end as well. It asks for none of the sysctls: looking up the first one in a
// new network namespace takes longer the more namespaces there are.
func (l *links) bringUp(h *netlink.Handle, link netlink.Link) (hasIPv6 bool, err error) {
	nodeEnd := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Index: link.Attrs().ParentIndex}}
	if err := errors.Join(l.rt.LinkSetIP6AddrGenMode(nodeEnd, addrGenNone), h.LinkSetIP6AddrGenMode(link, addrGenNone)); err != nil {
		if !errors.Is(err, unix.EAFNOSUPPORT) {
			return false, fmt.Errorf("keep the kernel from making addresses: %w", err)
		}
		return false, h.LinkSetUp(link)
	}
	if !l.security.wanted() {
		quietIPv6(link.Attrs().Name)
	}
	if err := h.LinkSetUp(link); err != nil {
		return false, err
	}
	local := netip.PrefixFrom(linkLocalOf(link.Attrs().HardwareAddr), 64)
	err = h.AddrReplace(link, &netlink.Addr{IPNet: ipNet(local), Flags: unix.IFA_F_NODAD})
	if errors.Is(err, unix.EACCES) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("add address %s: %w", local, err)
	}
	return true, nil
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
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), ones)
}

func defaultNet(gw netip.Addr) *net.IPNet {
	if gw.Is4() {
		return ipNet(netip.PrefixFrom(netip.IPv4Unspecified(), 0))
	}
	return ipNet(netip.PrefixFrom(netip.IPv6Unspecified(), 0))
}

// addresses lists the addresses of a link.
func addresses(h *netlink.Handle, link netlink.Link) ([]netlink.Addr, error) {
	return netns.Dump(func() ([]netlink.Addr, error) { return h.AddrList(link, netlink.FAMILY_ALL) })
}

// routeList lists the routes of the namespace of h, of both families.
func routeList(h *netlink.Handle) ([]netlink.Route, error) {
	return netns.Dump(func() ([]netlink.Route, error) { return h.RouteList(nil, netlink.FAMILY_ALL) })
}
