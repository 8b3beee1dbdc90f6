package fetch

import (
	"net/http"
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

// ProxyFor returns the proxy that the library must use for a URL: this one for the
// registries' API, the environment's for all else (signatures that are elsewhere). For
// the API over HTTPS it returns an error, whereupon the library asks in plain HTTP, as
// the proxy wants it: it is the proxy that speaks TLS with the registry.
func (r Route) ProxyFor(u *url.URL) (*url.URL, error) {
	api := strings.HasPrefix(u.Path, "/v2/") || strings.HasPrefix(u.Path, "/extensions/v2/")
	if !api || !slices.Contains(r.Hosts, u.Host) {
		return http.ProxyFromEnvironment(&http.Request{URL: u})
	}
	if u.Scheme != "http" {
		return nil, errPlain
	}
	return &url.URL{Scheme: "http", Host: r.Addr, User: url.UserPassword("pull", r.Secret)}, nil
}
