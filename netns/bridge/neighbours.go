package bridge

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/netns"
)

// The kernel has one limit for the neighbours of all network namespaces (gc_thresh3, 1024,
// which is the machine's to set), and a pod that talks takes two entries: its own on the
// bridge, and the gateway's in the pod. Beyond it nobody finds a new neighbour, the host
// included. So we enter both ourselves, as learned elsewhere: such entries do not count,
// and are not collected. The kernel confirms and corrects them as any others.

// enter makes such an entry. An interface whose IPv6 is off takes none, and needs none; nor
// does a kernel without it.
func enter(h *netlink.Handle, n *netlink.Neigh) error {
	if err := h.NeighSet(n); err != nil && (n.Family != unix.AF_INET6 || !noIPv6(err)) {
		return fmt.Errorf("enter neighbour %s: %w", n.IP, err)
	}
	return nil
}

func noIPv6(err error) bool { return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EAFNOSUPPORT) }

// neighbour returns an entry for enter.
func neighbour(ifindex int, a netip.Addr, mac net.HardwareAddr) *netlink.Neigh {
	family := unix.AF_INET
	if a.Is6() {
		family = unix.AF_INET6
	}
	return &netlink.Neigh{LinkIndex: ifindex, Family: family, State: netlink.NUD_STALE, Flags: netlink.NTF_EXT_LEARNED, IP: a.AsSlice(), HardwareAddr: mac}
}

// meet enters a pod's addresses on the bridge.
func (d *device) meet(addrs []netip.Addr, mac net.HardwareAddr) error {
	for _, a := range addrs {
		if err := enter(d.rt, neighbour(d.now().index, a, mac)); err != nil {
			return fmt.Errorf("bridge %s: %w", d.name, err)
		}
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
	for _, a := range addrs {
		err := d.rt.NeighDel(neighbour(d.now().index, a, nil))
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) && !noIPv6(err) {
			return fmt.Errorf("remove neighbour %s from bridge %s: %w", a, d.name, err)
		}
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
