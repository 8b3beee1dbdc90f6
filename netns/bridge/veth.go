package bridge

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/subpod/subpod/netns"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// podInterface is the name of a pod's interface, as everywhere.
const podInterface = "eth0"

// portDisabled is the state of a bridge port that neither sends nor receives
// (BR_STATE_DISABLED of linux/if_bridge.h).
const portDisabled = 0

// interfaceOf returns the name of the pod's interface.
func interfaceOf(pod netns.Pod) string { return cmp.Or(pod.Interface, podInterface) }

// macOf derives the hardware address from the pod's first address: an address
// that comes back in another pod finds right entries in every neighbour table.
func macOf(ip netip.Addr) net.HardwareAddr {
	b := ip.AsSlice()
	b = b[len(b)-4:]
	return net.HardwareAddr{0x0a, 0x58, b[0], b[1], b[2], b[3]}
}

// createVeth makes, by one message, a veth with one end up in the bridge and the
// other, still down, in the pod's network namespace.
func (r *rawSocket) createVeth(name, inPod string, bridge, mtu, podNS int, mac net.HardwareAddr) error {
	host := nl.NewIfInfomsg(unix.AF_UNSPEC)
	host.Flags, host.Change = unix.IFF_UP, unix.IFF_UP
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	peer := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.VETH_INFO_PEER, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC) // not up: a veth cannot be before it has its peer
	peer.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(inPod))
	peer.AddRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(mtu)))
	peer.AddRtAttr(unix.IFLA_ADDRESS, mac)
	peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(podNS)))
	return r.send(newRequest("make the link", unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, host,
		nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)),
		nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(mtu))),
		nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(bridge))),
		info))
}

func portState(state byte) *nl.RtAttr { return nl.NewRtAttr(nl.IFLA_BRPORT_STATE, []byte{state}) }

// portRequest changes attributes of a bridge port.
func portRequest(ifindex int, attrs ...*nl.RtAttr) *request {
	msg := nl.NewIfInfomsg(unix.AF_BRIDGE)
	msg.Index = int32(ifindex)
	port := nl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
	for _, a := range attrs {
		port.AddChild(a)
	}
	return newRequest("set up the bridge port", unix.RTM_SETLINK, 0, msg, port)
}

// secureRequests set up a bridge port for the pod with the hardware address. Idempotent.
//
// Hairpin lets a pod reach itself through its own host port: the packet leaves the
// bridge by the port that it came from. The port learns no hardware addresses, which a
// pod could otherwise draw to itself, by frames that pass no filter as well (to
// 01:80:c2:00:00:0e), and gets no frames for unknown ones; a static entry leads to the
// pod instead. Without an address there is no entry.
func secureRequests(ifindex int, mac net.HardwareAddr) []*request {
	out := []*request{portRequest(ifindex, nl.NewRtAttr(nl.IFLA_BRPORT_MODE, []byte{1}),
		nl.NewRtAttr(nl.IFLA_BRPORT_LEARNING, []byte{0}), nl.NewRtAttr(nl.IFLA_BRPORT_UNICAST_FLOOD, []byte{0}))}
	if mac != nil {
		entry := &netlink.Ndmsg{Family: unix.AF_BRIDGE, Index: uint32(ifindex), State: netlink.NUD_NOARP, Flags: netlink.NTF_MASTER}
		out = append(out, newRequest("lead frames to the bridge port", unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE,
			entry, nl.NewRtAttr(netlink.NDA_LLADDR, mac)))
	}
	return out
}

// secure sets up a bridge port by secureRequests.
func (l *links) secure(ifindex int, mac net.HardwareAddr) error {
	return l.raw.send(secureRequests(ifindex, mac)...)
}

// secureExisting is secure for a pod that an earlier server connected. One without a
// bridge is left to the repairer.
func (l *links) secureExisting(link netlink.Link, mac net.HardwareAddr) error {
	if link.Attrs().MasterIndex == 0 {
		return nil
	}
	return l.secure(link.Attrs().Index, mac)
}

// attach makes the pod's link into the bridge with the given index, or reuses the one
// that an interrupted Setup left, and reports whether it did the latter.
func (l *links) attach(pod netns.Pod, ifindex, mtu int, mac net.HardwareAddr) (reused bool, err error) {
	ns, err := os.Open(pod.NetNS)
	if err != nil {
		return false, fmt.Errorf("open the pod's network namespace: %w", err)
	}
	defer ns.Close()
	name := l.names.link(pod.ID)
	create := func() error { return l.raw.createVeth(name, interfaceOf(pod), ifindex, mtu, int(ns.Fd()), mac) }
	err = create()
	if errors.Is(err, unix.EEXIST) {
		if reused, err = l.reuse(name, pod, ifindex, mac); err == nil && !reused {
			err = create()
		}
	}
	if errors.Is(err, unix.EXFULL) {
		return false, fmt.Errorf("%w: a bridge takes %d pods; put further ones on another network (subpod network create), or on the node's", netns.ErrFull, maxPorts)
	}
	if err != nil {
		return false, fmt.Errorf("connect the pod to the bridge: %w", err)
	}
	return reused, nil
}

// maxPorts is how many ports the kernel gives a bridge: port numbers have ten bits, and
// none is 0 (BR_PORT_BITS in the kernel's net/bridge/br_private.h).
const maxPorts = 1<<10 - 1

// reuse handles names that exist already: a link between exactly this pod and the node
// is reused; the end of an older namespace's link, which the kernel removes with that
// namespace in its own time, is removed, and then, or if it has just gone by itself, the
// names are free and reused is false; an interface of somebody else in the pod is an
// error.
func (l *links) reuse(name string, pod netns.Pod, ifindex int, mac net.HardwareAddr) (reused bool, err error) {
	inPod, err := linkIn(pod)
	if err != nil {
		return false, err
	}
	link, err := l.rt.LinkByName(name)
	gone := errors.As(err, &netlink.LinkNotFoundError{})
	switch {
	case err != nil && !gone:
		return false, err
	case inPod == nil && gone:
		return false, nil
	case inPod == nil:
		if err := l.rt.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
			return false, fmt.Errorf("remove the link of an older namespace: %w", err)
		}
		return false, nil
	case gone:
		return false, fmt.Errorf("the pod has an %s that is not ours: %w", interfaceOf(pod), unix.EEXIST)
	case inPod.Attrs().Index != link.Attrs().ParentIndex || inPod.Attrs().ParentIndex != link.Attrs().Index:
		return false, fmt.Errorf("%s and the pod's %s are not ends of one link: %w", name, interfaceOf(pod), unix.EEXIST)
	}
	return true, l.enslave(link, ifindex, mac)
}

// linkIn returns the pod's interface, nil when it has none.
func linkIn(pod netns.Pod) (link netlink.Link, err error) {
	err = netns.In(pod.NetNS, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		link, err = h.LinkByName(interfaceOf(pod))
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			link, err = nil, nil
		}
		return err
	})
	return link, err
}

// enslave puts an existing link (back) into the bridge, as a fresh port of the pod with
// the hardware address: it may have been silenced.
func (l *links) enslave(link netlink.Link, ifindex int, mac net.HardwareAddr) error {
	if err := l.rt.LinkSetNoMaster(link); err != nil {
		return err
	}
	if err := l.rt.LinkSetMasterByIndex(link, ifindex); err != nil {
		return err
	}
	return l.secure(link.Attrs().Index, mac)
}
