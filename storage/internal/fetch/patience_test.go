package fetch

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/subpod/subpod/tests/registry"
)

// drip answers with a body of which a byte comes now and then.
func drip(w http.ResponseWriter, r *http.Request, code int) {
	w.Header().Set("Content-Type", manifestType)
	w.Header().Set("Content-Length", "1000000")
	if strings.Contains(r.URL.Path, "/blobs/") {
		w.Header().Set("Content-Length", "1000") // as it has
	}
	if code == http.StatusPartialContent {
		w.Header().Set("Content-Length", "900")
		w.Header().Set("Content-Range", "bytes 10-909/1000")
	}
	w.WriteHeader(code)
	for r.Context().Err() == nil {
		io.WriteString(w, " ")
		w.(http.Flusher).Flush()
		time.Sleep(10 * time.Millisecond)
	}
}

// TestDripping: a mirror of which a byte comes now and then is given up, whatever it drips,
// in the time that it has, and the registry itself has the answer.
func TestDripping(t *testing.T) {
	blob := noise(1000, 20)
	name := "blobs/" + digest.FromBytes(blob).String()
	for _, c := range []struct {
		what, path string
		ranges     string
		fault      func(http.ResponseWriter, *http.Request) bool
	}{
		{"manifest", "manifests/1", "", dripOn("/manifests/", http.StatusOK)},
		{"manifest of its digest", "manifests/" + digest.FromString(manifest).String(), "", dripOn("/manifests/", http.StatusOK)},
		{"error instead of a manifest", "manifests/1", "", dripOn("/manifests/", http.StatusNotFound)},
		{"error for all", "manifests/1", "", dripOn("/", http.StatusServiceUnavailable)},
		{"blob", name, "", dripOn("/blobs/", http.StatusOK)},
		{"error instead of a blob", name, "", dripOn("/blobs/", http.StatusNotFound)},
		{"part of a blob", name, "bytes=10-909", dripOn("/blobs/", http.StatusPartialContent)},
		{"token", "manifests/1", "", func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path == "/token" {
				drip(w, r, http.StatusOK)
			}
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token"`, r.Host))
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}},
		{"refusal", "manifests/1", "", func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			drip(w, r, http.StatusUnauthorized)
			return true
		}},
	} {
		t.Run(c.what, func(t *testing.T) {
			t.Parallel()
			good, mirror := fake(t, registry.FakeOptions{}, blob), fake(t, registry.FakeOptions{Fault: c.fault}, blob)
			p, client := start(t, Config{Endpoints: []Endpoint{endpointOf(mirror), endpointOf(good)}, Timeout: 5 * time.Second})
			for _, host := range []string{mirror.Addr, good.Addr} { // as the library does
				var header []string
				if c.ranges != "" {
					header = []string{"Range", c.ranges}
				}
				done := make(chan struct{})
				var resp *http.Response
				var err error
				go func() {
					defer close(done)
					resp, _, err = get(t, client, host, c.path, header...)
				}()
				select {
				case <-done:
				case <-time.After(time.Minute):
					t.Fatalf("%s does not answer", host)
				}
				if err == nil && resp.StatusCode/100 == 2 {
					return
				}
				if host == good.Addr {
					t.Errorf("%v %v %v", resp, err, p.Err())
				}
			}
		})
	}
}

func dripOn(part string, code int) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, part) {
			drip(w, r, code)
			return true
		}
		return false
	}
}

// TestStrangers: whoever opens connections to the proxy without its secret, and says
// nothing, keeps neither the library out nor any memory.
func TestStrangers(t *testing.T) {
	f := fake(t, registry.FakeOptions{})
	p, c := start(t, Config{Endpoints: []Endpoint{endpointOf(f)}})
	for range 10 * maxConnections {
		conn, err := net.Dial("tcp", p.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		p.guests.mu.Lock()
		n := len(p.guests.strangers) + len(p.guests.known)
		p.guests.mu.Unlock()
		if n > maxConnections || n > maxStrangers+1 {
			t.Fatalf("%d connections are open", n)
		}
	}
	for range 3 {
		if _, body, err := get(t, c, f.Addr, "manifests/1"); err != nil || string(body) != manifest {
			t.Errorf("%s %v", body, err)
		}
	}
}
