package rootless

import (
	"strings"
	"testing"
)

// TestWayOut: what a host's network does not give to pods now is said, and no more.
func TestWayOut(t *testing.T) {
	all := WayOut{IPv4: true, IPv6: true, DNS: "2001:db8::53 192.0.2.53"}
	for _, c := range []struct {
		name, uplink string
		ipv6         bool // of the uplink
		way          WayOut
		want         []string // nil: nothing is said
	}{
		{"all there is", UplinkSlirp, true, all, nil},
		{"IPv4 alone", UplinkSlirp, true, WayOut{IPv4: true, DNS: "192.0.2.53"}, nil},
		{"IPv6 alone", UplinkSlirp, true, WayOut{IPv6: true, DNS: "2001:db8::53 fe80::1%eth0"}, nil},
		{"IPv6 alone, an uplink without it", UplinkSlirp, false, WayOut{IPv6: true, DNS: "2001:db8::53 fe80::1%eth0"}, []string{"IPv6 alone now", "switched egress", "slirp4netns does not ask"}},
		{"IPv6 alone, a resolver of its own", UplinkPasta, false, WayOut{IPv6: true, DNS: "127.0.0.53"}, []string{"IPv6 alone now"}},
		{"servers by IPv6 alone", UplinkPasta, true, WayOut{IPv4: true, IPv6: true, DNS: "2001:db8::53"}, nil},
		{"servers by IPv6 alone, an uplink without it", UplinkPasta, false, WayOut{IPv4: true, IPv6: true, DNS: "2001:db8::53"}, []string{"pasta does not ask"}},
		{"servers by IPv6 alone, which it asks", UplinkGvisor, false, WayOut{IPv4: true, IPv6: true, DNS: "2001:db8::53"}, nil},
		{"no network", UplinkGvisor, false, WayOut{}, []string{"no way out now"}},
		{"pods in the host's network", UplinkHost, false, WayOut{}, nil},
		{"none wanted", UplinkNone, false, WayOut{}, nil},
	} {
		got := c.way.Lacks(c.uplink, c.ipv6)
		if (got == "") != (c.want == nil) {
			t.Errorf("%s: %q", c.name, got)
		}
		for _, want := range c.want {
			if !strings.Contains(got, want) {
				t.Errorf("%s: no %q in %q", c.name, want, got)
			}
		}
	}
}
