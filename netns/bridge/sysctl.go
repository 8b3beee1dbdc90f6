package bridge

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// sysctls makes the node a router. It runs on the node's thread: /proc/sys/net
// shows the network namespace of whoever opens the file.
func (b *Bridge) sysctls() error {
	if err := setSysctl("net/ipv4/ip_forward", 1); err != nil {
		return fmt.Errorf("turn on IPv4 forwarding: %w", err)
	}
	// Lets 127.0.0.1:hostPort of the node lead to pods; the rules keep pods from
	// using loopback addresses towards the node.
	if err := setSysctl("net/ipv4/conf/"+b.name+"/route_localnet", 1); err != nil {
		b.log.Warn("host ports will not answer on the node's loopback address", "error", err)
	}
	if ipv6Off("all") {
		return nil
	}
	// A router ignores router advertisements, unless told not to (value 2).
	links, err := net.Interfaces()
	if err != nil {
		return fmt.Errorf("list the node's interfaces: %w", err)
	}
	for _, l := range links {
		key := "net/ipv6/conf/" + l.Name + "/accept_ra"
		if v, err := readSysctl(key); err == nil && v == 1 && l.Name != b.name {
			if err := setSysctl(key, 2); err != nil {
				b.log.Warn("router advertisements will be ignored", "interface", l.Name, "error", err)
			}
		}
	}
	if err := setSysctl("net/ipv6/conf/all/forwarding", 1); err != nil {
		b.log.Warn("pods will not reach other networks by IPv6", "error", err)
	}
	if err := b.routeIPv6Loopback(); err != nil {
		b.log.Warn("host ports will not answer on ::1", "error", err)
	}
	return nil
}

// routeIPv6Loopback is what IPv6 has for route_localnet: a route for ::1 on the
// bridge lets answers of pods in once connection tracking has given them back
// their real destination. Packets that come with ::1 are dropped earlier, by the
// kernel itself. Where br_netfilter handles IPv6 (bridge-nf-call-ip6tables=1) that
// check comes too late, and ::1 does not work. The metric keeps lo in front.
func (b *Bridge) routeIPv6Loopback() error {
	return b.links.rt.RouteReplace(&netlink.Route{
		LinkIndex: b.ifindex, Dst: ipNet(netip.PrefixFrom(netip.IPv6Loopback(), 128)),
		Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Priority: 4096,
	})
}

// setSysctl writes the value unless it is there already: /proc/sys may be
// read-only and right.
func setSysctl(path string, value int) error {
	have, err := readSysctl(path)
	if err == nil && have == value {
		return nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.WriteFile("/proc/sys/"+path, []byte(strconv.Itoa(value)), 0)
}
