package bridge

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/subpod/subpod/netns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// links are the pods' links into the bridge, changed by netlink sockets of the node
// network namespace.
type links struct {
	rt       *netlink.Handle
	raw      *rawSocket
	security *portSecurity
	names    naming

	congestion string // Options.Congestion
}

func openLinks(o Options, security *portSecurity) (*links, error) {
	l := &links{security: security, names: security.naming, congestion: o.Congestion}
	thread := o.Thread
	err := thread.Do(func() (err error) {
		// The sockets keep the namespace of the thread that makes them.
		if l.rt, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
			return err
		}
		if l.raw, err = openRaw(); err != nil {
			l.rt.Close()
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open netlink in the node network namespace: %w", err)
	}
	return l, nil
}

func (l *links) close() {
	l.rt.Close()
	l.raw.close()
}

// intact returns the node's end of the pod's link, nil unless it has the addresses. When not,
// Setup was interrupted, and doing it again completes it.
func (l *links) intact(pod netns.Pod, want []netip.Addr) netlink.Link {
	port, err := l.rt.LinkByName(l.names.link(pod.ID))
	if err != nil {
		return nil
	}
	var have []netip.Addr
	missing := func(a netip.Addr) bool { return !slices.Contains(have, a) }
	err = netns.In(pod.NetNS, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		link, err := h.LinkByName(interfaceOf(pod))
		if err != nil {
			return err
		}
		list, err := addresses(h, link)
		for _, a := range list {
			have = append(have, prefixOf(a.IPNet).Addr())
		}
		if slices.ContainsFunc(want, missing) && ipv6Off(interfaceOf(pod)) {
			want = slices.DeleteFunc(slices.Clone(want), netip.Addr.Is6)
		}
		return err
	})
	if err != nil || slices.ContainsFunc(want, missing) {
		return nil
	}
	return port
}

// sweep removes links of pods that are not live, and puts those of live ones back into
// the bridge with the given index. live are their hardware addresses by pod ID.
func (l *links) sweep(live map[string]net.HardwareAddr, bridge int) error {
	macs := map[string]net.HardwareAddr{}
	for id, mac := range live {
		macs[l.names.link(id)] = mac
	}
	list, err := netns.Dump(l.rt.LinkList)
	if err != nil {
		return fmt.Errorf("list links of the node: %w", err)
	}
	var errs []error
	for _, link := range list {
		a := link.Attrs()
		if link.Type() != "veth" || !l.names.owns(a.Name) {
			continue
		}
		mac, known := macs[a.Name]
		switch {
		case !known:
			// It may be going already, with its namespace.
			if err := l.rt.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
				errs = append(errs, fmt.Errorf("remove orphan link %s: %w", a.Name, err))
			}
		case a.MasterIndex != bridge:
			if err := l.enslave(link, bridge, mac); err != nil {
				errs = append(errs, fmt.Errorf("put link %s back into the bridge: %w", a.Name, err))
			}
		}
	}
	return errors.Join(errs...)
}

// podAddresses returns the global addresses of the pod's interface; nil without one.
func podAddresses(pod netns.Pod) ([]netip.Addr, error) {
	var addrs []netip.Addr
	err := netns.In(pod.NetNS, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		link, err := h.LinkByName(interfaceOf(pod))
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			return nil // never set up
		}
		if err != nil {
			return err
		}
		list, err := addresses(h, link)
		for _, a := range list {
			if p := prefixOf(a.IPNet); !p.Addr().IsLinkLocalUnicast() {
				addrs = append(addrs, p.Addr())
			}
		}
		return err
	})
	return addrs, err
}

// silence stops the pod's bridge port, without the delays of taking the link
// down. One that is gone, in no bridge or down already is fine.
func (l *links) silence(name string) error {
	link, err := l.rt.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) || (err == nil && link.Attrs().MasterIndex == 0) {
		return nil
	}
	if err == nil {
		err = l.raw.send(portRequest(link.Attrs().Index, portState(portDisabled)))
	}
	// The same, a moment later; the kernel has no such request for what is in no bridge.
	if err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENETDOWN) {
		return fmt.Errorf("stop bridge port %s: %w", name, err)
	}
	return nil
}
