package storage

import (
	"net"
	"net/netip"
	"strings"
)

// onLoopback reports whether a registry, host[:port], is on this machine by its name. Without
// an entry in registries.conf it may then speak plain HTTP, as with other runtimes: nobody
// stands between.
func onLoopback(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return strings.EqualFold(host, "localhost") || err == nil && ip.IsLoopback()
}
