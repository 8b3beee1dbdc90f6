package bridge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/subpod/subpod/netns"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// podInterface is the name of every pod's interface, as everywhere.
const podInterface = "eth0"

// vethPrefix begins the names of the node's ends of the pods' links.
const vethPrefix = "sp"

// portDisabled is the state of a bridge port that neither sends nor receives
// (BR_STATE_DISABLED of linux/if_bridge.h).
const portDisabled = 0

func vethName(podID string) string {
	return vethPrefix + podID[:unix.IFNAMSIZ-1-len(vethPrefix)]
}

// macOf derives the hardware address from the pod's first address: an address
// that comes back in another pod finds right entries in every neighbour table.
func macOf(ip netip.Addr) net.HardwareAddr {
	b := ip.AsSlice()
	b = b[len(b)-4:]
	return net.HardwareAddr{0x0a, 0x58, b[0], b[1], b[2], b[3]}
}

// rawSocket sends rtnetlink messages that the netlink library cannot build.
type rawSocket struct {
	handles map[int]*nl.SocketHandle
}

func openRaw() (*rawSocket, error) {
	s, err := nl.GetNetlinkSocketAt(-1, -1, unix.NETLINK_ROUTE) // -1: here, on the calling thread
	if err != nil {
		return nil, err
	}
	return &rawSocket{map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}}}, nil
}

func (r *rawSocket) close() { r.handles[unix.NETLINK_ROUTE].Close() }

func (r *rawSocket) send(kind, flags int, msg *nl.IfInfomsg, attrs ...*nl.RtAttr) error {
	req := nl.NewNetlinkRequest(kind, flags|unix.NLM_F_ACK)
	req.Sockets = r.handles
	req.AddData(msg)
	for _, a := range attrs {
		req.AddData(a)
	}
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// createVeth makes, by one message, a veth with one end up in the bridge and the
// other, still down, in the pod's network namespace.
func (r *rawSocket) createVeth(name string, bridge, mtu, podNS int, mac net.HardwareAddr) error {
	host := nl.NewIfInfomsg(unix.AF_UNSPEC)
	host.Flags, host.Change = unix.IFF_UP, unix.IFF_UP
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	peer := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.VETH_INFO_PEER, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC) // not up: a veth cannot be before it has its peer
	peer.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(podInterface))
	peer.AddRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(mtu)))
	peer.AddRtAttr(unix.IFLA_ADDRESS, mac)
	peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(podNS)))
	return r.send(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, host,
		nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)),
		nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(mtu))),
		nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(bridge))),
		info)
}

// hairpin lets a pod reach itself through its own host port: the packet leaves the
// bridge by the port that it came from.
func hairpin() *nl.RtAttr { return nl.NewRtAttr(nl.IFLA_BRPORT_MODE, []byte{1}) }

func portState(state byte) *nl.RtAttr { return nl.NewRtAttr(nl.IFLA_BRPORT_STATE, []byte{state}) }

// setPort changes an attribute of a bridge port.
func (r *rawSocket) setPort(ifindex int, attr *nl.RtAttr) error {
	msg := nl.NewIfInfomsg(unix.AF_BRIDGE)
	msg.Index = int32(ifindex)
	port := nl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
	port.AddChild(attr)
	return r.send(unix.RTM_SETLINK, 0, msg, port)
}

// attach makes the pod's link, or takes the one that an interrupted Setup left.
func (b *Bridge) attach(pod netns.Pod, ifindex, mtu int, mac net.HardwareAddr) error {
	ns, err := os.Open(pod.NetNS)
	if err != nil {
		return fmt.Errorf("open the pod's network namespace: %w", err)
	}
	defer ns.Close()
	name := vethName(pod.ID)
	create := func() error { return b.links.raw.createVeth(name, ifindex, mtu, int(ns.Fd()), mac) }
	err = create()
	if errors.Is(err, unix.EEXIST) {
		err = b.takeVeth(name, pod.NetNS, ifindex, create)
	}
	if err != nil {
		return fmt.Errorf("connect the pod to bridge %s: %w", b.name, err)
	}
	return nil
}

// takeVeth handles names that exist already: a link between exactly this pod and
// the node is used, the end of an older namespace's link is replaced, and an
// interface of somebody else in the pod is an error.
func (b *Bridge) takeVeth(name, podNS string, ifindex int, create func() error) error {
	var inPod netlink.Link
	err := netns.In(podNS, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		inPod, err = h.LinkByName(podInterface)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			return nil
		}
		return err
	})
	if err != nil {
		return err
	}
	link, err := b.links.rt.LinkByName(name)
	switch {
	case errors.As(err, &netlink.LinkNotFoundError{}):
		return fmt.Errorf("the pod has an %s that is not ours: %w", podInterface, unix.EEXIST)
	case err != nil:
		return err
	case inPod == nil:
		if err := b.links.rt.LinkDel(link); err != nil {
			return fmt.Errorf("remove the link of an older namespace: %w", err)
		}
		return create()
	case inPod.Attrs().Index != link.Attrs().ParentIndex || inPod.Attrs().ParentIndex != link.Attrs().Index:
		return fmt.Errorf("%s and the pod's %s are not ends of one link: %w", name, podInterface, unix.EEXIST)
	}
	return b.enslave(link, ifindex)
}

// enslave puts an existing link (back) into the bridge, as a fresh port: it may
// have been silenced.
func (b *Bridge) enslave(link netlink.Link, ifindex int) error {
	if err := b.links.rt.LinkSetNoMaster(link); err != nil {
		return err
	}
	if err := b.links.rt.LinkSetMasterByIndex(link, ifindex); err != nil {
		return err
	}
	return b.links.raw.setPort(link.Attrs().Index, hairpin())
}

// linkTimeout bounds the wait for a link that is up on both ends. Old kernels may
// take a second (linkwatch.c limits the rate).
const linkTimeout = 3 * time.Second

// awaitLink returns when the pod's bridge port and the bridge pass packets. The
// kernel brings a link into service a little after its carrier is there, and a
// first packet that comes too early costs its sender a second. Since Linux 6.8,
// asking for a link finishes that work at once (linkwatch_sync_dev).
func (b *Bridge) awaitLink(ctx context.Context, port string, bridge int) error {
	// In this order: the port gives the bridge its carrier.
	err := awaitUp(ctx, port, func() (netlink.Link, error) { return b.links.rt.LinkByName(port) })
	if err != nil {
		return err
	}
	return awaitUp(ctx, b.name, func() (netlink.Link, error) { return b.links.rt.LinkByIndex(bridge) })
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

// address gives the pod's interface its addresses and default routes, and takes
// away others that an interrupted Setup gave it. It returns the addresses in use:
// IPv6 ones are left out when a sysctl of the pod turned IPv6 off.
func (b *Bridge) address(podNS string, addrs []netip.Prefix, egress uint64, mtu int) ([]netip.Prefix, error) {
	var used []netip.Prefix
	err := netns.In(podNS, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		link, err := h.LinkByName(podInterface)
		if err != nil {
			return err
		}
		if err := removeOthers(h, link, addrs); err != nil {
			return err
		}
		hasIPv6, err := b.bringUp(h, link)
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
			gw := gatewayOf(p)
			r := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: gw.AsSlice(), Dst: defaultNet(gw)}
			if err := h.RouteReplace(r); err != nil {
				return fmt.Errorf("add default route via %s: %w", gw, err)
			}
		}
		if err := b.links.raw.setPort(link.Attrs().ParentIndex, hairpin()); err != nil {
			return fmt.Errorf("set up the bridge port: %w", err)
		}
		if err := limit(h, link, egress, mtu); err != nil {
			return err
		}
		for _, p := range addrs {
			awaitNeighbours(podInterface, p.Addr())
		}
		// Before its carrier is known, what the pod sends is dropped (noop_qdisc).
		return awaitUp(context.Background(), podInterface, func() (netlink.Link, error) {
			return h.LinkByIndex(link.Attrs().Index)
		})
	})
	if err != nil {
		return nil, fmt.Errorf("configure the pod's %s: %w", podInterface, err)
	}
	return used, nil
}

// awaitNeighbours returns once neighbours can find an IPv6 address of the calling
// thread's network namespace. The kernel joins the group that they ask in
// (RFC 4291, 2.7.1) in its own time, also without duplicate address detection, and
// whoever asks before that asks again only after a second.
func awaitNeighbours(ifname string, a netip.Addr) {
	if a.Is4() {
		return
	}
	ip := a.As16()
	want := fmt.Sprintf("%s ff0200000000000000000001ff%02x%02x%02x", ifname, ip[13], ip[14], ip[15])
	for end := time.Now().Add(linkTimeout); time.Now().Before(end); time.Sleep(500 * time.Microsecond) {
		groups, err := os.ReadFile("/proc/thread-self/net/igmp6")
		if err != nil {
			return
		}
		for line := range strings.Lines(string(groups)) {
			if strings.Contains(strings.Join(strings.Fields(line), " "), want) {
				return
			}
		}
	}
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
func (b *Bridge) bringUp(h *netlink.Handle, link netlink.Link) (hasIPv6 bool, err error) {
	nodeEnd := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Index: link.Attrs().ParentIndex}}
	if err := errors.Join(b.links.rt.LinkSetIP6AddrGenMode(nodeEnd, addrGenNone), h.LinkSetIP6AddrGenMode(link, addrGenNone)); err != nil {
		if !errors.Is(err, unix.EAFNOSUPPORT) {
			return false, fmt.Errorf("keep the kernel from making addresses: %w", err)
		}
		return false, h.LinkSetUp(link)
	}
	if !b.quiet.Load() {
		quietIPv6()
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
// another pod for one, where the bridge cannot (dropChatter).
func quietIPv6() {
	for _, key := range []string{"accept_ra", "router_solicitations"} {
		_ = setSysctl("net/ipv6/conf/"+podInterface+"/"+key, 0) // read-only: then it is as it was
	}
}

// removeOthers takes global addresses off the link that are not wanted.
func removeOthers(h *netlink.Handle, link netlink.Link, want []netip.Prefix) error {
	have, err := addresses(h, link)
	if err != nil {
		return err
	}
	for _, a := range have {
		p := prefixOf(a.IPNet)
		if p.Addr().IsLinkLocalUnicast() || slices.Contains(want, p) {
			continue
		}
		if err := h.AddrDel(link, &a); err != nil {
			return fmt.Errorf("remove address %s: %w", p, err)
		}
	}
	return nil
}

// ipv6Off reports whether IPv6 is off on the interface in the calling thread's
// network namespace, or missing in the kernel.
func ipv6Off(ifname string) bool {
	v, err := readSysctl("net/ipv6/conf/" + ifname + "/disable_ipv6")
	return err != nil || v != 0
}

func readSysctl(path string) (int, error) {
	b, err := os.ReadFile("/proc/sys/" + path)
	if err != nil {
		return 0, err
	}
	for len(b) > 0 && b[len(b)-1] == '\n' {
		b = b[:len(b)-1]
	}
	return strconv.Atoi(string(b))
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
