package bridge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/subpod/subpod/netns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// device is the bridge interface, with a gateway address in each subnet of pods.
type device struct {
	name   string
	names  naming // of the bridge's ports
	thread *netns.Thread
	rt     *netlink.Handle
	raw    *rawSocket
	log    *slog.Logger
	later  int // behind other bridges in the choice of a route

	changing sync.Mutex // held by whoever changes the interface, also across netlink

	mu    sync.Mutex // guards state; never held across anything that may wait
	state deviceState
}

// deviceState describes the interface. Its slices are replaced, never changed.
type deviceState struct {
	index    int // 0 until it is set up
	mtu      int // 0 until it is set up when it is to be the uplink's
	mac      net.HardwareAddr
	subnets  []netip.Prefix // of new pods, IPv4 first
	served   []netip.Prefix // all subnets with a gateway address on the bridge
	answered int            // index of the interface whose gateways pods have been able to find
}

// now returns a copy of the state.
func (d *device) now() deviceState {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.state
}

func (d *device) update(f func(*deviceState)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f(&d.state)
}

// setUp makes the bridge or repairs it, with a gateway address in every subnet that a
// pod may have an address in. Subnets that were in use before stay as long as used
// reports it.
func (d *device) setUp(used func(netip.Prefix) bool) error {
	d.changing.Lock()
	defer d.changing.Unlock()
	if d.now().mtu == 0 {
		mtu := d.uplinkMTU()
		d.update(func(s *deviceState) { s.mtu = mtu })
	}
	old, err := d.prefixes()
	if err != nil {
		return err
	}
	link, err := d.ensure()
	if err != nil {
		return err
	}
	keep := slices.Clone(d.now().subnets)
	for _, s := range old {
		switch {
		case slices.Contains(keep, s):
		case used(s):
			keep = append(keep, s)
		default:
			if err := d.unassign(link, s); err != nil {
				return err
			}
		}
	}
	d.update(func(s *deviceState) { s.index, s.mac, s.served = link.Attrs().Index, link.Attrs().HardwareAddr, nil })
	if err := d.assign(keep); err != nil {
		return err
	}
	return d.thread.Do(d.sysctls)
}

// repair sets the bridge up again when it is missing, down or another one, and reports
// whether it did.
func (d *device) repair() (bool, error) {
	d.changing.Lock()
	defer d.changing.Unlock()
	link, err := d.rt.LinkByName(d.name)
	if err == nil && link.Attrs().Index == d.now().index && link.Attrs().RawFlags&unix.IFF_UP != 0 {
		return false, nil
	}
	if link, err = d.ensure(); err != nil {
		return false, err
	}
	// The pods know it by the old one's.
	if mac := d.now().mac; mac != nil && !bytes.Equal(mac, link.Attrs().HardwareAddr) {
		if err := d.rt.LinkSetHardwareAddr(link, mac); err != nil {
			return false, fmt.Errorf("set hardware address %s of bridge %s: %w", mac, d.name, err)
		}
	}
	d.update(func(s *deviceState) { s.index = link.Attrs().Index })
	if err := d.assign(d.now().served); err != nil {
		return false, err
	}
	return true, d.thread.Do(d.sysctls)
}

// ensure returns the interface, made when missing, with its MTU and up.
func (d *device) ensure() (netlink.Link, error) {
	rt, state := d.rt, d.now()
	link, err := rt.LinkByName(d.name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = d.name, state.mtu
		// An address of its own: else the bridge takes that of its first port, and
		// changes it when that pod goes.
		attrs.HardwareAddr = macOf(gatewayOf(state.subnets[0]))
		// With multicast snooping, the kernel goes to work on all ports whenever one is
		// added, and without a querier it would flood multicast to them all the same.
		snooping := false
		if err := rt.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}); err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, fmt.Errorf("make bridge %s: %w", d.name, err)
		}
		link, err = rt.LinkByName(d.name)
	}
	if err != nil {
		return nil, fmt.Errorf("bridge %s: %w", d.name, err)
	}
	if link.Type() != "bridge" {
		return nil, fmt.Errorf("interface %s exists and is no bridge but %s: configure another name", d.name, link.Type())
	}
	if link.Attrs().MTU != state.mtu {
		if err := rt.LinkSetMTU(link, state.mtu); err != nil {
			return nil, fmt.Errorf("set MTU %d of bridge %s: %w", state.mtu, d.name, err)
		}
	}
	if err := rt.LinkSetUp(link); err != nil {
		return nil, fmt.Errorf("bring up bridge %s: %w", d.name, err)
	}
	return link, nil
}

// remove removes the interface. Idempotent.
func (d *device) remove() error {
	d.changing.Lock()
	defer d.changing.Unlock()
	link, err := d.rt.LinkByName(d.name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err == nil && link.Type() == "bridge" {
		err = d.rt.LinkDel(link)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove bridge %s: %w", d.name, err)
	}
	return nil
}

// addGateways gives the bridge its address in more subnets.
func (d *device) addGateways(subnets []netip.Prefix) error {
	d.changing.Lock()
	defer d.changing.Unlock()
	return d.assign(subnets)
}

// removeGateways takes the bridge's addresses away in all served subnets but those.
func (d *device) removeGateways(but []netip.Prefix) error {
	d.changing.Lock()
	defer d.changing.Unlock()
	link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Index: d.now().index, Name: d.name}}
	var errs []error
	for _, s := range d.now().served {
		if slices.Contains(but, s) {
			continue
		}
		if err := d.unassign(link, s); err != nil {
			errs = append(errs, err)
			continue
		}
		d.update(func(state *deviceState) {
			state.served = slices.DeleteFunc(slices.Clone(state.served), func(o netip.Prefix) bool { return o == s })
		})
	}
	return errors.Join(errs...)
}

// unassign removes the bridge's address in a subnet. Idempotent. The caller holds
// changing.
func (d *device) unassign(link netlink.Link, subnet netip.Prefix) error {
	a := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(gatewayOf(subnet), subnet.Bits()))}
	if err := d.rt.AddrDel(link, a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("remove gateway of %s: %w", subnet, err)
	}
	return nil
}

// assign is addGateways with d.changing held.
func (d *device) assign(subnets []netip.Prefix) error {
	link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Index: d.now().index, Name: d.name}}
	for _, subnet := range subnets {
		gw := netip.PrefixFrom(gatewayOf(subnet), subnet.Bits())
		a := &netlink.Addr{IPNet: ipNet(gw)}
		if gw.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := d.rt.AddrReplace(link, a); err != nil {
			return fmt.Errorf("add gateway %s to bridge %s: %w", gw, d.name, err)
		}
		d.update(func(s *deviceState) {
			if !slices.Contains(s.served, subnet) {
				s.served = append(slices.Clone(s.served), subnet)
			}
		})
	}
	return nil
}

// prefixes returns the subnets that the interface has gateway addresses in.
func (d *device) prefixes() ([]netip.Prefix, error) {
	link, err := d.rt.LinkByName(d.name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look at bridge %s: %w", d.name, err)
	}
	addrs, err := addresses(d.rt, link)
	if err != nil {
		return nil, fmt.Errorf("addresses of bridge %s: %w", d.name, err)
	}
	var out []netip.Prefix
	for _, a := range addrs {
		if p := prefixOf(a.IPNet); !p.Addr().IsLinkLocalUnicast() {
			out = append(out, p.Masked())
		}
	}
	return out, nil
}

// withSubnets gives each address the length of its subnet's prefix.
func (d *device) withSubnets(addrs []netip.Addr) ([]netip.Prefix, error) {
	served := d.now().served
	var out []netip.Prefix
	for _, a := range addrs {
		i := slices.IndexFunc(served, func(s netip.Prefix) bool { return s.Contains(a) })
		if i < 0 {
			return nil, fmt.Errorf("address %s is in no subnet of bridge %s", a, d.name)
		}
		out = append(out, netip.PrefixFrom(a, served[i].Bits()))
	}
	return out, nil
}

// awaitGateways returns once pods can find the gateways: the kernel puts the bridge
// into service only when it has its first port.
func (d *device) awaitGateways(ctx context.Context, index int, prefixes []netip.Prefix) error {
	if d.now().answered == index {
		return nil
	}
	for _, p := range prefixes {
		// Each look is short: the thread is everybody's.
		if err := awaitNeighbours(ctx, d.thread.Do, d.name, gatewayOf(p)); err != nil {
			return fmt.Errorf("wait for the gateway of %s: %w", p, err)
		}
	}
	d.update(func(s *deviceState) { s.answered = index })
	return nil
}

// uplinkMTU returns the MTU of the default route's interface, or the biggest that
// slirp4netns' interface can have.
func (d *device) uplinkMTU() int {
	const biggest = 65520
	routes, err := routeList(d.rt)
	if err != nil {
		return biggest
	}
	for _, r := range routes {
		if r.Dst != nil && prefixOf(r.Dst).Bits() > 0 {
			continue
		}
		if link, err := d.rt.LinkByIndex(r.LinkIndex); err == nil && link.Attrs().Name != d.name {
			return min(link.Attrs().MTU, biggest)
		}
	}
	return biggest
}

// sysctls makes the node a router. It runs on the node's thread: /proc/sys/net
// shows the network namespace of whoever opens the file.
func (d *device) sysctls() error {
	if err := setSysctl("net/ipv4/ip_forward", 1); err != nil {
		return fmt.Errorf("turn on IPv4 forwarding: %w", err)
	}
	// Lets 127.0.0.1:hostPort of the node lead to pods; the rules keep pods from
	// using loopback addresses towards the node.
	if err := setSysctl("net/ipv4/conf/"+d.name+"/route_localnet", 1); err != nil {
		d.log.Warn("host ports will not answer on the node's loopback address", "error", err)
	}
	if ipv6Off("all") {
		return nil
	}
	// A router ignores router advertisements, unless the sysctl is 2.
	links, err := net.Interfaces()
	if err != nil {
		return fmt.Errorf("list the node's interfaces: %w", err)
	}
	for _, l := range links {
		if d.names.owns(l.Name) {
			continue // what comes in by a port is the bridge's; there may be a thousand
		}
		key := "net/ipv6/conf/" + l.Name + "/accept_ra"
		if v, err := readSysctl(key); err == nil && v == 1 && l.Name != d.name {
			if err := setSysctl(key, 2); err != nil {
				d.log.Warn("router advertisements will be ignored", "interface", l.Name, "error", err)
			}
		}
	}
	if err := setSysctl("net/ipv6/conf/all/forwarding", 1); err != nil {
		d.log.Warn("pods will not reach other networks by IPv6", "error", err)
	}
	if err := d.routeIPv6Loopback(); err != nil {
		d.log.Warn("host ports will not answer on ::1", "error", err)
	}
	return nil
}

// routeIPv6Loopback is what IPv6 has for route_localnet: a route for ::1 on the
// bridge lets answers of pods in once connection tracking has given them back
// their real destination. Packets that come with ::1 are dropped earlier, by the
// kernel itself. Where br_netfilter handles IPv6 (bridge-nf-call-ip6tables=1) that
// check comes too late, and ::1 does not work. The metric keeps lo in front.
func (d *device) routeIPv6Loopback() error {
	return d.rt.RouteReplace(&netlink.Route{
		LinkIndex: d.now().index, Dst: ipNet(netip.PrefixFrom(netip.IPv6Loopback(), 128)),
		Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Priority: 4096 + d.later,
	})
}
