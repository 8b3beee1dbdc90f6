package fetch

import (
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// Route is what the library needs to know of a Proxy, also in another process. Whoever
// has it may use the proxy.
type Route struct {
	Addr, Secret string
	Hosts        []string // the endpoints' host[:port]
}

// Route returns the way to the proxy.
func (p *Proxy) Route() Route {
	r := Route{Addr: p.addr, Secret: p.secret}
	for _, e := range p.endpoints {
		r.Hosts = append(r.Hosts, e.Host)
	}
	return r
}

// ProxyFor returns the proxy that the library must use for a URL: this one. For the
// registries' API over HTTPS it returns an error, whereupon the library asks in plain
// HTTP, as the proxy wants it: it is the proxy that speaks TLS with the registry. With
// servers that have signatures (Config.Elsewhere) the library speaks TLS itself.
func (r Route) ProxyFor(u *url.URL) (*url.URL, error) {
	if r.isAPI(u) && u.Scheme != "http" {
		return nil, errPlain
	}
	return &url.URL{Scheme: "http", Host: r.Addr, User: url.UserPassword("pull", r.Secret)}, nil
}

// isAPI reports whether a URL is one of the registries' API.
func (r Route) isAPI(u *url.URL) bool {
	return (strings.HasPrefix(u.Path, "/v2/") || strings.HasPrefix(u.Path, "/extensions/v2/")) && slices.Contains(r.Hosts, u.Host)
}

// Port returns the port of the proxy.
func (r Route) Port() uint16 {
	at, _ := netip.ParseAddrPort(r.Addr)
	return at.Port()
}
