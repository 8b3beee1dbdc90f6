package rootless

import (
	"net"
	"net/netip"
	"strings"
)

// WayOut is what ways to the outside the network of a host has at the moment: a laptop is
// taken from one to the next.
type WayOut struct {
	IPv4, IPv6 bool
	DNS        string // the servers of resolv.conf(5), separated by spaces
}

// HostWayOut returns those of the calling process's network. Nothing is sent.
func HostWayOut() WayOut {
	// Root servers of the DNS: addresses of the outside in any network. The kernel looks for
	// the route and the address that packets would have, also by rules of a VPN.
	way := func(network, address string) bool {
		conn, err := net.Dial(network, address)
		if err != nil {
			return false
		}
		_ = conn.Close()
		return true
	}
	return WayOut{IPv4: way("udp4", "198.41.0.4:53"), IPv6: way("udp6", "[2001:503:ba3e::2:30]:53"), DNS: hostDNS()}
}

// Lacks describes what pods behind an uplink, with IPv6 or not, miss for that, "" for nothing.
func (w WayOut) Lacks(uplink string, ipv6 bool) string {
	if uplink != UplinkSlirp && uplink != UplinkPasta && uplink != UplinkGvisor {
		return ""
	}
	var lacks []string
	switch {
	case !w.IPv4 && !w.IPv6:
		lacks = append(lacks, "this host has no way out now")
	case !w.IPv4 && !ipv6:
		lacks = append(lacks, "this host has a way out by IPv6 alone now: pods have none, but for TCP of those with switched egress (run --egress switched)")
	}
	if w.DNS != "" && !w.resolves(netip.Addr.Is4) && !ipv6 && uplink != UplinkGvisor {
		lacks = append(lacks, "its resolv.conf names servers by IPv6 alone, which "+uplink+" does not ask: pods resolve no names, unless by gvisor-tap-vsock (node.uplink)")
	}
	return strings.Join(lacks, "; ")
}

// resolves reports whether a server of the family answers.
func (w WayOut) resolves(family func(netip.Addr) bool) bool {
	for _, server := range strings.Fields(w.DNS) {
		if a, err := netip.ParseAddr(server); err == nil && family(a) {
			return true
		}
	}
	return false
}
