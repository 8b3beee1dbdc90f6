package registry

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
)

// Front is an HTTP server in front of a registry that counts what it is asked
// for, and can ask for credentials, speak TLS, or misbehave.
type Front struct {
	*httptest.Server
	Addr string // host:port

	mu    sync.Mutex
	blobs map[string]int
}

// FrontOptions say how a Front behaves.
type FrontOptions struct {
	TLS            bool
	User, Password string // ask for these (HTTP basic)
	// Fault, when set, sees each request first; true means that it has answered.
	Fault func(http.ResponseWriter, *http.Request) bool
}

// NewFront starts a front of the registry at addr. Close ends it.
func NewFront(addr string, o FrontOptions) *Front {
	f := &Front{blobs: map[string]int{}}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: addr})
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		if o.User != "" && (user != o.User || password != o.Password) {
			w.Header().Set("WWW-Authenticate", `Basic realm="tests"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`, http.StatusUnauthorized)
			return
		}
		if o.Fault != nil && o.Fault(w, r) {
			return
		}
		if i := strings.LastIndex(r.URL.Path, "/blobs/"); i >= 0 && r.Method == http.MethodGet {
			f.mu.Lock()
			f.blobs[r.URL.Path[i+len("/blobs/"):]]++
			f.mu.Unlock()
		}
		proxy.ServeHTTP(w, r)
	})
	if o.TLS {
		f.Server = httptest.NewTLSServer(handler)
	} else {
		f.Server = httptest.NewServer(handler)
	}
	f.Addr = f.Listener.Addr().String()
	return f
}

// Blobs returns how often each blob was asked for.
func (f *Front) Blobs() map[string]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	counts := make(map[string]int, len(f.blobs))
	for digest, n := range f.blobs {
		counts[digest] = n
	}
	return counts
}
