package fetch

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/subpod/subpod/tests/registry"
)

// TestElsewhere: servers of signatures that the configuration names are reached through
// the proxy, the library speaks TLS with them itself, and all others are refused.
func TestElsewhere(t *testing.T) {
	answer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/away" {
			http.Redirect(w, r, "http://169.254.169.254/secret", http.StatusFound)
			return
		}
		if r.Header.Get("Proxy-Authorization") != "" {
			w.WriteHeader(http.StatusBadRequest)
		}
		io.WriteString(w, "signature")
	})
	plain, secure, other := httptest.NewServer(answer), httptest.NewTLSServer(answer), httptest.NewServer(answer)
	for _, s := range []*httptest.Server{plain, secure, other} {
		t.Cleanup(s.Close)
	}
	at := func(s *httptest.Server) string {
		u, _ := url.Parse(s.URL)
		return HostPort(u)
	}
	f := fake(t, registry.FakeOptions{})
	p, c := start(t, Config{Endpoints: []Endpoint{endpointOf(f)}, Elsewhere: []string{at(plain), at(secure)}})
	trusting := c.Transport.(*http.Transport)
	trusting.TLSClientConfig = secure.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	for _, server := range []*httptest.Server{plain, secure} {
		resp, err := c.Get(server.URL + "/app@sha256=1/signature-1")
		if err != nil {
			t.Error(err)
			continue
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK || string(body) != "signature" {
			t.Errorf("%s: %v %s %v", server.URL, resp, body, err)
		}
	}
	for _, refused := range []string{other.URL + "/x", plain.URL + "/away", "https://" + at(other) + "/x", "http://" + f.Addr + "/other"} {
		resp, err := c.Get(refused)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				t.Errorf("%s was answered", refused)
			}
		}
		if why := p.Err(); why == nil || !strings.Contains(why.Error(), "registries.d") {
			t.Errorf("%s: %v", refused, why)
		}
	}
	trusting.CloseIdleConnections()
	trusting.TLSClientConfig = nil
	if resp, err := c.Get(secure.URL); err == nil {
		resp.Body.Close()
		t.Error("a certificate that nobody knows was taken")
	}
}
