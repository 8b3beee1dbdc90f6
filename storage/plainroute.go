package storage

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"sync"
)

// errPlain says that a registry that speaks TLS has named an address without it.
var errPlain = errors.New("the registry speaks TLS and names an address of plain HTTP, which would show the credentials and the content to everyone on the way")

// keepTLS returns a types.SystemContext.DockerProxy which has containers/image send
// nothing over plain HTTP once it has found that the registry speaks TLS: where an upload
// goes to, and the server of tokens, are addresses that the registry names, and the library
// sends its credentials there. For one client of one registry. The proxies are those of the
// environment, as without it.
func keepTLS() func(*url.URL) (*url.URL, error) {
	var mu sync.Mutex
	var pinged, settled bool
	tls := false
	return func(u *url.URL) (*url.URL, error) {
		mu.Lock()
		defer mu.Unlock()
		// The first requests find out what the registry speaks: by TLS, then without.
		ping := !settled && (u.Path == "/v2/" || u.Path == "/v1/_ping")
		if ping || !pinged {
			tls, pinged = u.Scheme == "https", true
		}
		settled = settled || !ping
		if tls && u.Scheme != "https" {
			return nil, fmt.Errorf("%w: %s", errPlain, u.Host)
		}
		return http.ProxyFromEnvironment(&http.Request{URL: u})
	}
}
