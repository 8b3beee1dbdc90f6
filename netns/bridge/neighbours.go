package bridge

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/netns"
)

// The kernel has one limit for the neighbours of all network namespaces (gc_thresh3, 1024,
// which is the machine's to set), and a pod that talks takes two entries: its own on the
// bridge, and the gateway's in the pod. Beyond it nobody finds a new neighbour, the host
// included. So we enter both ourselves, as learned elsewhere: such entries do not count,
// and are not collected. The kernel confirms and corrects them as any others.

// An interface whose IPv6 is off takes no such entry of it, and needs none; nor does a
// kernel without it.
func noIPv6(err error) bool { return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EAFNOSUPPORT) }

// neighbourRequest makes such an entry.
func neighbourRequest(index int, a netip.Addr, mac net.HardwareAddr) *request {
	q := newRequest(fmt.Sprintf("enter neighbour %s", a), unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE,
		&netlink.Ndmsg{Family: uint8(familyOf(a)), Index: uint32(index), State: netlink.NUD_STALE, Flags: netlink.NTF_EXT_LEARNED},
		nl.NewRtAttr(netlink.NDA_DST, a.AsSlice()), nl.NewRtAttr(netlink.NDA_LLADDR, mac))
	if a.Is6() {
		q.passes = noIPv6
	}
	return q
}

// meetRequests enter a pod's addresses on the bridge.
func (d *device) meetRequests(addrs []netip.Addr, mac net.HardwareAddr) []*request {
	var out []*request
	for _, a := range addrs {
		out = append(out, neighbourRequest(d.now().index, a, mac))
	}
	return out
}

// meet enters a pod's addresses on the bridge.
func (d *device) meet(addrs []netip.Addr, mac net.HardwareAddr) error {
	if err := d.raw.send(d.meetRequests(addrs, mac)...); err != nil {
		return fmt.Errorf("bridge %s: %w", d.name, err)
	}
	return nil
}

// meetAll enters the addresses of all pods on the bridge.
func meetAll(b *Bridge) error {
	var errs []error
	for pod, addrs := range b.ipam.all() {
		if mac := b.ipam.mac(pod); mac != nil { // it has not gone meanwhile
			errs = append(errs, b.device.meet(addrs, mac))
		}
	}
	return errors.Join(errs...)
}

// forget removes a pod's addresses from the bridge's neighbours. Idempotent.
func (d *device) forget(addrs []netip.Addr) error {
	var all []*request
	for _, a := range addrs {
		q := newRequest(fmt.Sprintf("remove neighbour %s", a), unix.RTM_DELNEIGH, 0,
			&netlink.Ndmsg{Family: uint8(familyOf(a)), Index: uint32(d.now().index)}, nl.NewRtAttr(netlink.NDA_DST, a.AsSlice()))
		q.passes = func(err error) bool {
			return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || noIPv6(err)
		}
		all = append(all, q)
	}
	if err := d.raw.send(all...); err != nil {
		return fmt.Errorf("bridge %s: %w", d.name, err)
	}
	return nil
}

// forgetOthers removes what an earlier server has entered for pods that are not there any
// more.
func (d *device) forgetOthers(known func(netip.Addr) bool) error {
	list, err := netns.Dump(func() ([]netlink.Neigh, error) { return d.rt.NeighList(d.now().index, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list neighbours on bridge %s: %w", d.name, err)
	}
	var gone []netip.Addr
	for _, n := range list {
		a, ok := netip.AddrFromSlice(n.IP)
		if ok && n.Flags&netlink.NTF_EXT_LEARNED != 0 && !known(a.Unmap()) {
			gone = append(gone, a.Unmap())
		}
	}
	return d.forget(gone)
}
