package fetch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"mime"
	"mime/multipart"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/subpod/subpod/tests/registry"
)

const (
	manifestType = "application/vnd.oci.image.manifest.v1+json"
	manifest     = `{"schemaVersion":2,"config":{},"layers":[]}`
)

// noise returns n bytes that are the same for the same seed.
func noise(n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint64())
	}
	return b
}

// fake starts a registry with the blobs in repository app.
func fake(t *testing.T, o registry.FakeOptions, blobs ...[]byte) *registry.Fake {
	t.Helper()
	f := registry.NewFake(o)
	t.Cleanup(f.Close)
	all := map[digest.Digest][]byte{}
	for _, b := range blobs {
		all[digest.FromBytes(b)] = b
	}
	f.Push("app", "1", manifestType, []byte(manifest), all)
	return f
}

func endpointOf(f *registry.Fake) Endpoint {
	return Endpoint{Host: f.Addr, Repo: "app", Insecure: true}
}

// start starts a proxy and returns a client of it.
func start(t *testing.T, cfg Config) (*Proxy, *http.Client) {
	t.Helper()
	if cfg.Timeout == 0 {
		cfg.Timeout = time.Minute
	}
	cfg.Delay, cfg.UserAgent, cfg.Log = time.Millisecond, "test", slog.New(slog.DiscardHandler)
	p, err := Start(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close(false) })
	tr := &http.Transport{Proxy: func(r *http.Request) (*url.URL, error) { return p.Route().ProxyFor(r.URL) }, DisableCompression: true}
	t.Cleanup(tr.CloseIdleConnections)
	return p, &http.Client{Transport: tr}
}

// get asks for a path below /v2/app/ of an endpoint.
func get(t *testing.T, c *http.Client, host, path string, header ...string) (*http.Response, []byte, error) {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, "http://"+host+"/v2/app/"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp, body, err
}

func wantBlob(t *testing.T, c *http.Client, host string, want []byte) {
	t.Helper()
	resp, body, err := get(t, c, host, "blobs/"+digest.FromBytes(want).String())
	if err != nil || resp.StatusCode != http.StatusOK || !bytes.Equal(body, want) {
		t.Errorf("got %d bytes of %d: %v", len(body), len(want), err)
	}
}

// TestBrokenConnections: every connection breaks after 1 MB.
func TestBrokenConnections(t *testing.T) {
	for _, reset := range []bool{false, true} {
		for _, spool := range []bool{false, true} {
			name := fmt.Sprintf("reset %v, spool %v", reset, spool)
			blob := noise(12<<20, 1)
			f := fake(t, registry.FakeOptions{CutAfter: 1 << 20, Reset: reset}, blob)
			cfg := Config{Endpoints: []Endpoint{endpointOf(f)}}
			if spool {
				cfg.Spool = newSpool(t)
			}
			_, c := start(t, cfg)
			wantBlob(t, c, f.Addr, blob)
			if limit := int64(len(blob)) * 11 / 10; !reset && f.Sent() > limit {
				t.Errorf("%s: %d bytes were sent, want at most %d", name, f.Sent(), limit)
			}
		}
	}
}

func newSpool(t *testing.T) *Spool {
	t.Helper()
	s, err := NewSpool(t.TempDir(), 1<<30, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestBrokenWithoutRanges: small blobs come through, and none of them whole twice.
func TestBrokenWithoutRanges(t *testing.T) {
	var blobs [][]byte
	total := 0
	for i := range 10 {
		blobs = append(blobs, noise(600<<10+i, uint64(i)))
		total += len(blobs[i])
	}
	f := fake(t, registry.FakeOptions{CutAfter: 1 << 20, NoRanges: true}, blobs...)
	_, c := start(t, Config{Endpoints: []Endpoint{endpointOf(f)}, Spool: newSpool(t)})
	var all sync.WaitGroup
	for _, b := range blobs {
		all.Go(func() { wantBlob(t, c, f.Addr, b) })
	}
	all.Wait()
	for _, b := range blobs {
		if n := f.Whole(digest.FromBytes(b)); n > 1 {
			t.Errorf("a blob was sent whole %d times", n)
		}
	}
	if f.Sent() > int64(2*total) {
		t.Errorf("%d bytes were sent for %d", f.Sent(), total)
	}
}

// TestTooBrokenWithoutRanges: what can't be had ends, with its reason.
func TestTooBrokenWithoutRanges(t *testing.T) {
	blob := noise(3<<20, 1)
	f := fake(t, registry.FakeOptions{CutAfter: 1 << 20, NoRanges: true}, blob)
	p, c := start(t, Config{Endpoints: []Endpoint{endpointOf(f)}})
	_, body, err := get(t, c, f.Addr, "blobs/"+digest.FromBytes(blob).String())
	if err == nil || len(body) == len(blob) {
		t.Errorf("got %d bytes, %v", len(body), err)
	}
	if !errors.Is(p.Err(), ErrUnavailable) {
		t.Errorf("the reason is %v", p.Err())
	}
	if resp, _, err := get(t, c, f.Addr, "blobs/"+digest.FromBytes(blob).String(), "Range", "bytes=5-"); err != nil || resp.StatusCode != http.StatusBadGateway {
		t.Errorf("asked again: %v %v", resp, err)
	}
}

// TestTriedAgain: answers that may change.
func TestTriedAgain(t *testing.T) {
	blob := noise(100, 1)
	for _, code := range []int{408, 429, 500, 502, 503, 504, 507, 520, 524, 599} {
		for _, part := range []string{"/manifests/", "/blobs/"} {
			var n atomic.Int32
			f := fake(t, registry.FakeOptions{Fault: func(w http.ResponseWriter, r *http.Request) bool {
				if strings.Contains(r.URL.Path, part) && n.Add(1) <= 2 {
					http.Error(w, "not now", code)
					return true
				}
				return false
			}}, blob)
			_, c := start(t, Config{Endpoints: []Endpoint{endpointOf(f)}})
			wantBlob(t, c, f.Addr, blob)
			if resp, body, err := get(t, c, f.Addr, "manifests/1"); err != nil || string(body) != manifest {
				t.Errorf("%d for %s: %v %s %v", code, part, resp, body, err)
			}
		}
	}
}

// TestGivenUp: answers that do not change are passed on after a few attempts, with what
// the registry said.
func TestGivenUp(t *testing.T) {
	for _, c := range []struct {
		code, want int
		tries      int
		err        error
	}{{503, 502, 5, ErrUnavailable}, {429, 502, 5, ErrUnavailable}, {404, 404, 1, ErrNotFound}, {401, 401, 1, ErrUnauthorized}, {403, 401, 1, ErrUnauthorized}} {
		f := fake(t, registry.FakeOptions{Fault: func(w http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, "/manifests/") {
				http.Error(w, `{"errors":[{"code":"ODD_CODE","message":"the reason"}]}`, c.code)
				return true
			}
			return false
		}})
		p, client := start(t, Config{Endpoints: []Endpoint{endpointOf(f)}})
		resp, body, err := get(t, client, f.Addr, "manifests/1")
		if err != nil || resp.StatusCode != c.want || !strings.Contains(string(body), "the reason") {
			t.Errorf("%d: %v %s %v", c.code, resp, body, err)
		}
		if !errors.Is(p.Err(), c.err) || f.Requests("/manifests/") != c.tries {
			t.Errorf("%d: %v after %d requests, want %v after %d", c.code, p.Err(), f.Requests("/manifests/"), c.err, c.tries)
		}
	}
}

// TestRetryAfter: the wait that a registry asks for counts as progress.
func TestRetryAfter(t *testing.T) {
	var n atomic.Int32
	f := fake(t, registry.FakeOptions{Fault: func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/manifests/") && n.Add(1) == 1 {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		}
		return false
	}})
	p, c := start(t, Config{Endpoints: []Endpoint{endpointOf(f)}})
	began, moved := time.Now(), p.Moved()
	if _, body, err := get(t, c, f.Addr, "manifests/1"); err != nil || string(body) != manifest {
		t.Errorf("%s %v", body, err)
	}
	if time.Since(began) < time.Second || p.Moved()-moved < 2 {
		t.Errorf("waited %v, moved by %d", time.Since(began), p.Moved()-moved)
	}
	for v, want := range map[string]time.Duration{"": 0, "x": 0, "-3": 0, "5": 5 * time.Second, "86400": maxRetryAfter,
		time.Now().Add(time.Hour).UTC().Format(http.TimeFormat): maxRetryAfter, "Thu, 01 Jan 1970 00:00:00 GMT": 0} {
		if got := retryAfter(http.Header{"Retry-After": {v}}); got != want {
			t.Errorf("%q: %v, want %v", v, got, want)
		}
	}
}

// TestRetryAfterOfMirror: nobody waits for a mirror that wants it while another one can be asked.
func TestRetryAfterOfMirror(t *testing.T) {
	var n atomic.Int32
	f := fake(t, registry.FakeOptions{Fault: func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/manifests/") {
			n.Add(1)
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		}
		return false
	}})
	_, c := start(t, Config{Endpoints: []Endpoint{endpointOf(f), endpointOf(fake(t, registry.FakeOptions{}))}})
	if resp, _, err := get(t, c, f.Addr, "manifests/1"); err == nil && resp.StatusCode == http.StatusOK {
		t.Error("the manifest came")
	}
	if n.Load() != 1 {
		t.Errorf("the mirror was asked %d times", n.Load())
	}
}

// TestMirrors: a mirror that is silent, slow, incomplete or something else than a
// registry does not keep the image from its reader.
func TestMirrors(t *testing.T) {
	blob := noise(3<<20, 1)
	name := digest.FromBytes(blob).String()
	isBlob := func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/blobs/") }
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for what, fault := range map[string]func(*registry.Fake) func(http.ResponseWriter, *http.Request) bool{
		"lacks the blob": func(*registry.Fake) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				if isBlob(r) {
					http.NotFound(w, r)
				}
				return isBlob(r)
			}
		},
		"never answers": func(*registry.Fake) func(http.ResponseWriter, *http.Request) bool {
			return func(_ http.ResponseWriter, r *http.Request) bool {
				if isBlob(r) {
					<-r.Context().Done()
				}
				return isBlob(r)
			}
		},
		"stops in the middle": func(*registry.Fake) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				if isBlob(r) {
					w.Header().Set("Content-Length", fmt.Sprint(len(blob)))
					w.Write(blob[:1<<20])
					w.(http.Flusher).Flush()
					<-r.Context().Done()
				}
				return isBlob(r)
			}
		},
		"drips": func(*registry.Fake) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				if !isBlob(r) {
					return false
				}
				w.Header().Set("Content-Length", fmt.Sprint(len(blob)))
				for i := range blob {
					if w.Write(blob[i : i+1]); r.Context().Err() != nil {
						break
					}
					w.(http.Flusher).Flush()
					time.Sleep(50 * time.Millisecond)
				}
				return true
			}
		},
		"wants a login": func(*registry.Fake) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				if isBlob(r) {
					w.WriteHeader(http.StatusUnauthorized)
				}
				return isBlob(r)
			}
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			bad, good := fake(t, registry.FakeOptions{}, blob), fake(t, registry.FakeOptions{}, blob)
			bad.SetFault(fault(bad))
			_, c := start(t, Config{Endpoints: []Endpoint{endpointOf(bad), endpointOf(good)}, Timeout: 6 * time.Second})
			wantBlob(t, c, bad.Addr, blob)
			if bad.Requests(name) == 0 {
				t.Error("the first mirror was not asked")
			}
		})
	}
	t.Run("silent", func(t *testing.T) {
		t.Parallel()
		good := fake(t, registry.FakeOptions{}, blob)
		host := silent.Addr().String()
		p, c := start(t, Config{Endpoints: []Endpoint{{Host: host, Repo: "app", Insecure: true}, endpointOf(good)}, Timeout: 6 * time.Second})
		resp, _, err := get(t, c, host, "manifests/1")
		if err != nil || resp.StatusCode != http.StatusBadGateway || !errors.Is(p.Err(), ErrUnavailable) {
			t.Errorf("a silent mirror: %v %v %v", resp, err, p.Err())
		}
		wantBlob(t, c, host, blob)
	})
	t.Run("manifest", func(t *testing.T) {
		for what, body := range map[string]string{"a page": "<html>log in</html>", "no JSON": "hello", "another digest": manifest + " "} {
			bad := fake(t, registry.FakeOptions{Fault: func(w http.ResponseWriter, r *http.Request) bool {
				if strings.Contains(r.URL.Path, "/manifests/") {
					io.WriteString(w, body)
					return true
				}
				return false
			}})
			p, c := start(t, Config{Endpoints: []Endpoint{endpointOf(bad), endpointOf(bad)}})
			resp, _, err := get(t, c, bad.Addr, "manifests/"+digest.FromString(manifest).String())
			if err != nil || resp.StatusCode != http.StatusBadGateway || !errors.Is(p.Err(), ErrNotRegistry) {
				t.Errorf("%s: %v %v %v", what, resp, err, p.Err())
			}
		}
	})
}

// TestManifestTypes: the type is what the manifest says where the registry does not know.
func TestManifestTypes(t *testing.T) {
	for _, c := range []struct{ given, body, want string }{
		{"application/octet-stream", manifest, manifestType},
		{"text/plain; charset=utf-8", manifest, manifestType},
		{"", manifest, manifestType},
		{"APPLICATION/VND.OCI.IMAGE.MANIFEST.V1+JSON; charset=utf-8", manifest, manifestType},
		{"application/vnd.docker.distribution.manifest.v1+prettyjws", manifest, manifestType},
		{"application/json", `{"schemaVersion":2,"manifests":[]}`, "application/vnd.oci.image.index.v1+json"},
		{"x/y", `{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json"}`, "application/vnd.docker.distribution.manifest.v2+json"},
		{"application/vnd.docker.distribution.manifest.v1+json", `{"schemaVersion":1}`, "application/vnd.docker.distribution.manifest.v1+json"},
	} {
		f := registry.NewFake(registry.FakeOptions{Fault: func(w http.ResponseWriter, r *http.Request) bool {
			w.Header()["Content-Type"] = nil
			if c.given != "" {
				w.Header().Set("Content-Type", c.given)
			}
			io.WriteString(w, c.body)
			return true
		}})
		_, client := start(t, Config{Endpoints: []Endpoint{endpointOf(f)}})
		resp, body, err := get(t, client, f.Addr, "manifests/1")
		if err != nil || resp.Header.Get("Content-Type") != c.want || string(body) != c.body {
			t.Errorf("%q: %v %v", c.given, resp, err)
		}
		f.Close()
	}
}

// TestRanges: parts of a blob, over a line that breaks.
func TestRanges(t *testing.T) {
	blob := noise(8<<20, 3)
	name := "blobs/" + digest.FromBytes(blob).String()
	for _, o := range []registry.FakeOptions{{}, {CutAfter: 1 << 20}, {CutAfter: 700 << 10, Reset: true}} {
		f := fake(t, o, blob)
		_, c := start(t, Config{Endpoints: []Endpoint{endpointOf(f)}})
		for _, r := range [][]span{{{5, 99}}, {{1 << 20, -1}}, {{0, 9}, {10, 3 << 20}, {5 << 20, -1}}, {{3, 3}, {7 << 20, 7<<20 + 5}}} {
			var list []string
			var want []byte
			for _, s := range r {
				end := s.last
				if end < 0 {
					list, end = append(list, fmt.Sprintf("%d-", s.first)), int64(len(blob)-1)
				} else {
					list = append(list, fmt.Sprintf("%d-%d", s.first, s.last))
				}
				want = append(want, blob[s.first:end+1]...)
			}
			resp, body, err := get(t, c, f.Addr, name, "Range", "bytes="+strings.Join(list, ","))
			if err != nil || resp.StatusCode != http.StatusPartialContent {
				t.Errorf("%v: %v %v", list, resp, err)
				continue
			}
			if got := joined(t, resp, body); !bytes.Equal(got, want) {
				t.Errorf("%+v %v: got %d bytes, want %d", o, list, len(got), len(want))
			}
		}
	}
	f := fake(t, registry.FakeOptions{NoRanges: true}, blob)
	_, c := start(t, Config{Endpoints: []Endpoint{endpointOf(f)}})
	resp, body, err := get(t, c, f.Addr, name, "Range", "bytes=5-9,20-29")
	if err != nil || resp.StatusCode != http.StatusOK || !bytes.Equal(body, blob) {
		t.Errorf("without ranges: %v %v", resp, err)
	}
}

// joined returns the content of all parts of an answer.
func joined(t *testing.T, resp *http.Response, body []byte) []byte {
	t.Helper()
	kind, params, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil || !strings.HasPrefix(kind, "multipart/") {
		return body
	}
	var all []byte
	parts := multipart.NewReader(bytes.NewReader(body), params["boundary"])
	for {
		part, err := parts.NextPart()
		if err != nil {
			return all
		}
		data, _ := io.ReadAll(part)
		all = append(all, data...)
	}
}

// TestShared: ten pulls at a time download a blob once, and all get it when the one that
// downloads it ends in the middle.
func TestShared(t *testing.T) {
	blob := noise(4<<20, 4)
	name := digest.FromBytes(blob).String()
	half, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	f := fake(t, registry.FakeOptions{}, blob)
	f.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
		first := false
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, name) {
			once.Do(func() { first = true })
		}
		if first {
			w.Header().Set("Content-Length", fmt.Sprint(len(blob)))
			w.Write(blob[:2<<20])
			w.(http.Flusher).Flush()
			close(half)
			select {
			case <-goOn:
			case <-r.Context().Done():
			}
		}
		return first
	})
	s := newSpool(t)
	leader, c := start(t, Config{Endpoints: []Endpoint{endpointOf(f)}, Spool: s})
	go c.Get("http://" + f.Addr + "/v2/app/blobs/" + name)
	<-half
	var all sync.WaitGroup
	for range 9 {
		_, c := start(t, Config{Endpoints: []Endpoint{endpointOf(f)}, Spool: s})
		all.Go(func() { wantBlob(t, c, f.Addr, blob) })
	}
	for deadline := time.Now().Add(time.Minute); f.Requests("HEAD ") < 9 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	leader.Close(false)
	all.Wait()
	if n := f.Requests("GET /v2/app/blobs/"); n != 2 {
		t.Errorf("the blob was asked for %d times, want twice: by the first, and for its rest", n)
	}
	close(goOn)
}

// TestSpoolKeeps: whole blobs of a pull that failed are there for the next one, if it
// may have them, and nothing is left of one that succeeded.
func TestSpoolKeeps(t *testing.T) {
	blob := noise(1<<20, 5)
	f := fake(t, registry.FakeOptions{}, blob)
	s := newSpool(t)
	pull := func(keep bool, e Endpoint) *Proxy {
		p, c := start(t, Config{Endpoints: []Endpoint{e}, Spool: s})
		wantBlob(t, c, f.Addr, blob)
		p.Close(keep)
		return p
	}
	left := func() int {
		entries, err := os.ReadDir(s.dir)
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	pull(false, endpointOf(f))
	if left() != 0 {
		t.Error("a successful pull left something")
	}
	pull(true, endpointOf(f))
	gets := f.Requests("GET /v2/app/blobs/")
	pull(true, endpointOf(f))
	if n := f.Requests("GET /v2/app/blobs/"); n != gets || left() != 1 {
		t.Errorf("fetched again: %d, then %d; %d files", gets, n, left())
	}
	// A server that starts anew finds it, and notices what was damaged.
	again, err := NewSpool(s.dir, 1<<30, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	s = again
	pull(true, endpointOf(f))
	if n := f.Requests("GET /v2/app/blobs/"); n != gets {
		t.Error("fetched again after a restart")
	}
	for _, b := range s.blobs {
		if err := os.WriteFile(b.path, make([]byte, len(blob)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pull(true, endpointOf(f))
	if n := f.Requests("GET /v2/app/blobs/"); n != gets+1 {
		t.Error("a damaged blob was used")
	}
	// A registry that refuses the blob refuses it.
	f.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") {
			w.WriteHeader(http.StatusForbidden)
			return true
		}
		return false
	})
	p, c := start(t, Config{Endpoints: []Endpoint{endpointOf(f)}, Spool: s})
	if resp, _, err := get(t, c, f.Addr, "blobs/"+digest.FromBytes(blob).String()); err != nil || resp.StatusCode != http.StatusUnauthorized || !errors.Is(p.Err(), ErrUnauthorized) {
		t.Errorf("a refused blob: %v %v", resp, err)
	}
	p.Close(false)
	if s.Clear(); left() != 0 {
		t.Errorf("%d files are left", left())
	}
}

// TestSpoolBound: what does not fit is passed on.
func TestSpoolBound(t *testing.T) {
	small, big := noise(10<<10, 6), noise(100<<10, 7)
	f := fake(t, registry.FakeOptions{}, small, big)
	s, err := NewSpool(t.TempDir(), 50<<10, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	p, c := start(t, Config{Endpoints: []Endpoint{endpointOf(f)}, Spool: s})
	wantBlob(t, c, f.Addr, small)
	wantBlob(t, c, f.Addr, big)
	p.Close(true)
	if len(s.blobs) != 1 {
		t.Errorf("%d blobs are kept, want the small one", len(s.blobs))
	}
}

// TestSpoolStuck: a blob whose file can't be removed takes its room until it can.
func TestSpoolStuck(t *testing.T) {
	s, err := NewSpool(t.TempDir(), 100, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	name := digest.FromString("stuck")
	b, first := s.claim(name)
	if !first || !s.admit(b, 60) {
		t.Fatal("the blob was not admitted")
	}
	// Nothing removes a directory with a file in it by mistake.
	if err := errors.Join(os.Remove(b.path), os.MkdirAll(b.path+"/x", 0o700)); err != nil {
		t.Fatal(err)
	}
	s.discard(b)
	s.release(b, false)
	s.Clear()
	if again, _ := s.claim(name); again != nil {
		t.Error("a blob whose file is in the way was claimed")
	}
	other, first := s.claim(digest.FromString("other"))
	if !first || s.admit(other, 60) {
		t.Error("there was room for another blob")
	}
	if err := os.Remove(b.path + "/x"); err != nil {
		t.Fatal(err)
	}
	if !s.admit(other, 60) {
		t.Error("there was no room for another blob")
	}
	if again, first := s.claim(name); again == nil || !first {
		t.Error("the blob can't be claimed any more")
	}
}

// TestOnlyHolder: nobody else on the machine may use the proxy, and it goes nowhere else.
func TestOnlyHolder(t *testing.T) {
	f := fake(t, registry.FakeOptions{})
	p, c := start(t, Config{Endpoints: []Endpoint{endpointOf(f)}})
	stranger := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, Proxy: func(*http.Request) (*url.URL, error) {
		return &url.URL{Scheme: "http", Host: p.addr, User: url.UserPassword("pull", "guess")}, nil
	}}}
	if resp, _, err := get(t, stranger, f.Addr, "manifests/1"); err != nil || resp.StatusCode != http.StatusProxyAuthRequired {
		t.Errorf("a stranger: %v %v", resp, err)
	}
	if _, err := p.Route().ProxyFor(&url.URL{Scheme: "https", Host: f.Addr, Path: "/v2/"}); err == nil {
		t.Error("the API over HTTPS is not refused")
	}
	resp, err := c.Post("http://"+f.Addr+"/v2/app/blobs/uploads/", "", nil)
	if err != nil || resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("a push: %v %v", resp, err)
	}
	resp.Body.Close()
}
