package storage

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"path"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	fakes "github.com/subpod/subpod/tests/registry"
)

// whole has TestBrokenConnections pull images of 200 MB, which takes minutes (make
// test-pulls).
var whole = flag.Bool("whole", false, "pull 200 MB through connections that break")

// startBad starts a registry that misbehaves, with img as app:v1.
func startBad(t testing.TB, o fakes.FakeOptions, img built) *fakes.Fake {
	t.Helper()
	f := fakes.NewFake(o)
	t.Cleanup(f.Close)
	f.Push("app", "v1", v1.MediaTypeImageManifest, img.manifest, img.blobs)
	return f
}

// badStore is a store that may use registries, in plain HTTP.
func badStore(t testing.TB, registries ...*fakes.Fake) *Store {
	t.Helper()
	o := testOptions(t, t.TempDir(), DriverFuse)
	var hosts []string
	for _, r := range registries {
		hosts = append(hosts, r.Addr)
	}
	insecureConf(t, o, hosts...)
	o.PullTimeout, o.retryDelay = patience, time.Millisecond
	return openStore(t, o)
}

// noise returns n bytes that don't compress.
func noise(n, seed int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 1}).Read(b)
	return b
}

// incompressible returns layers of size bytes each.
func incompressible(t testing.TB, layers, size int) (img built, bytes int64) {
	t.Helper()
	var spec imageSpec
	for i := range layers {
		spec.layers = append(spec.layers, layer{fmt.Sprintf("f%d", i): {content: string(noise(size, i))}})
	}
	img = build(t, spec)
	for _, b := range img.blobs {
		bytes += int64(len(b))
	}
	return img, bytes
}

// TestBrokenConnections: a registry that breaks every connection after 1 MB.
func TestBrokenConnections(t *testing.T) {
	total := 12 << 20
	if *whole {
		total = 200 << 20
	}
	for _, c := range []struct {
		name     string
		layers   int
		noRanges bool
		clients  int
		limit    float64 // bytes sent for each byte of the image
	}{
		{"one layer", 1, false, 1, 1.1},
		{"ten layers", 10, false, 1, 1.1},
		{"without ranges", max(10, total/(700<<10)), true, 1, 2},
		{"ten clients", 10, false, 10, 1.1},
		{"ten clients without ranges", max(10, total/(700<<10)), true, 10, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			img, bytes := incompressible(t, c.layers, min(total/c.layers, 200<<20))
			f := startBad(t, fakes.FakeOptions{CutAfter: 1 << 20, NoRanges: c.noRanges}, img)
			s := badStore(t, f)
			var all sync.WaitGroup
			for i := range c.clients {
				repo := fmt.Sprintf("app%d", i) // so that these are pulls of their own
				f.Push(repo, "v1", v1.MediaTypeImageManifest, img.manifest, nil)
				all.Go(func() {
					got, err := s.Images.Pull(context.Background(), PullRequest{Ref: f.Addr + "/" + repo + ":v1"})
					if err != nil || got.ID != img.id() {
						t.Errorf("%s: %v", repo, err)
					}
				})
			}
			all.Wait()
			sent := f.Sent()
			t.Logf("%d bytes were sent for %d", sent, bytes)
			if float64(sent) > c.limit*float64(bytes) {
				t.Errorf("%d bytes were sent for %d, more than %v times", sent, bytes, c.limit)
			}
			for _, d := range img.layers {
				if n := f.Whole(d); n > 1 {
					t.Errorf("%s was sent whole %d times", d, n)
				}
			}
			wantClean(t, s, c.layers)
		})
	}
}

// TestKeptBlobs: a pull fetches nothing that an earlier one, which failed, had whole.
func TestKeptBlobs(t *testing.T) {
	img, _ := incompressible(t, 8, 100<<10)
	last := img.layers[7].String()
	f := startBad(t, fakes.FakeOptions{}, img)
	seven := make(chan struct{})
	var mu sync.Mutex
	done := 0
	f.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		if strings.HasSuffix(r.URL.Path, last) {
			<-seven
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		}
		f.Answer(w, r)
		mu.Lock()
		defer mu.Unlock()
		if done++; done == 8 { // with the configuration
			close(seven)
		}
		return true
	})
	s := badStore(t, f)
	ref := f.Addr + "/app:v1"
	if _, err := s.Images.Pull(context.Background(), PullRequest{Ref: ref}); !errors.Is(err, ErrRegistryUnavailable) || !strings.Contains(err.Error(), "503") {
		t.Fatalf("got %v, want ErrRegistryUnavailable that names the status", err)
	}
	wantClean(t, s, 0)
	f.SetFault(nil)
	before := f.Requests("GET /v2/app/blobs/")
	pullRef(t, s, ref)
	if n := f.Requests("GET /v2/app/blobs/") - before; n > 2 {
		t.Errorf("%d blobs were fetched again, want at most the last one and the configuration", n)
	}
	wantClean(t, s, 8)
}

// TestPullMirrors: a mirror that does not serve does not keep the next one from it.
func TestPullMirrors(t *testing.T) {
	img := sample(t, "mirror")
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	on := func(part string, answer func(http.ResponseWriter, *http.Request)) fakes.FakeOptions {
		return fakes.FakeOptions{Fault: func(w http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, part) {
				answer(w, r)
			}
			return strings.Contains(r.URL.Path, part)
		}}
	}
	status := func(code int) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	for name, first := range map[string]string{
		"nobody":     "127.0.0.1:1",
		"silent":     silent.Addr().String(),
		"broken":     startBad(t, on("/", status(500)), img).Addr,
		"closed":     startBad(t, on("/", status(401)), img).Addr,
		"empty":      startBad(t, on("/manifests/", status(404)), img).Addr,
		"incomplete": startBad(t, on("/blobs/", http.NotFound), img).Addr,
		"portal": startBad(t, on("/", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			io.WriteString(w, "<html>log in</html>")
		}), img).Addr,
		"truncated": startBad(t, on("/blobs/", func(w http.ResponseWriter, r *http.Request) {
			blob := img.blobs[digest.Digest(path.Base(r.URL.Path))]
			w.Write(blob[:len(blob)/2])
		}), img).Addr,
		"corrupt": startBad(t, on("/blobs/", func(w http.ResponseWriter, r *http.Request) {
			blob := bytes.Clone(img.blobs[digest.Digest(path.Base(r.URL.Path))])
			for i := range blob[len(blob)/2:] {
				blob[len(blob)/2+i] ^= 0x55
			}
			w.Write(blob)
		}), img).Addr,
		"hanging": startBad(t, on("/blobs/", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }), img).Addr,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			good := startBad(t, fakes.FakeOptions{}, img)
			o := testOptions(t, t.TempDir(), DriverFuse)
			o.PullTimeout, o.retryDelay = 8*time.Second, time.Millisecond
			writeFile(t, o.RegistriesConf, fmt.Sprintf("[[registry]]\nprefix = \"here.test\"\nlocation = \"127.0.0.1:1\"\n"+
				"[[registry.mirror]]\nlocation = %q\ninsecure = true\n[[registry.mirror]]\nlocation = %q\ninsecure = true\n", first, good.Addr))
			s := openStore(t, o)
			if got := pullRef(t, s, "here.test/app:v1"); got.ID != img.id() {
				t.Errorf("pulled %s", got.ID)
			}
		})
	}
}

// TestDripping: a byte now and then is not progress.
func TestDripping(t *testing.T) {
	img, _ := incompressible(t, 1, 1<<20)
	f := startBad(t, fakes.FakeOptions{}, img)
	f.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, img.layers[0].String()) {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(img.blobs[img.layers[0]])))
		for _, b := range img.blobs[img.layers[0]] {
			if _, err := w.Write([]byte{b}); err != nil || r.Context().Err() != nil {
				break
			}
			w.(http.Flusher).Flush()
			time.Sleep(20 * time.Millisecond)
		}
		return true
	})
	s := badStore(t, f)
	s.layers.opts.PullTimeout = time.Second
	err := within(t, "the pull", func() error {
		_, err := s.Images.Pull(context.Background(), PullRequest{Ref: f.Addr + "/app:v1"})
		return err
	})
	if !errors.Is(err, ErrRegistryUnavailable) {
		t.Errorf("got %v, want ErrRegistryUnavailable", err)
	}
	wantClean(t, s, 0)
}

// TestPullErrors: each cause has its class, and its text says what happened where.
func TestPullErrors(t *testing.T) {
	img := sample(t, "errors")
	manifestIs := func(mime string, body []byte) fakes.FakeOptions {
		return fakes.FakeOptions{Fault: func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/manifests/") {
				return false
			}
			w.Header().Set("Content-Type", mime)
			w.Write(body)
			return true
		}}
	}
	for name, c := range map[string]struct {
		o    fakes.FakeOptions
		want error
		text string
	}{
		"octet-stream": {manifestIs("application/octet-stream", img.manifest), nil, ""},
		"plain text":   {manifestIs("text/plain; charset=utf-8", img.manifest), nil, ""},
		"page":         {manifestIs("text/html", []byte("<!DOCTYPE html><p>log in")), ErrRegistryUnavailable, "web page"},
		"junk":         {manifestIs(v1.MediaTypeImageManifest, []byte(`{"schemaVersion":2,"layers":17`)), ErrCorrupt, "manifest"},
		"rate limit": {fakes.FakeOptions{Fault: func(w http.ResponseWriter, r *http.Request) bool {
			w.WriteHeader(http.StatusTooManyRequests)
			io.WriteString(w, `{"errors":[{"code":"TOOMANYREQUESTS","message":"pull rate limit"}]}`)
			return true
		}}, ErrRegistryUnavailable, "pull rate limit"},
	} {
		f := startBad(t, c.o, img)
		s := badStore(t, f)
		_, err := s.Images.Pull(context.Background(), PullRequest{Ref: f.Addr + "/app:v1"})
		if !errors.Is(err, c.want) || err != nil && !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: got %v, want %v that says %q", name, err, c.want, c.text)
		}
	}
}

// TestBadCreated: an image whose time of creation can't be read is corrupt, and says so.
func TestBadCreated(t *testing.T) {
	img := sample(t, "created")
	old := img.config
	img.config = []byte(strings.Replace(string(old), "2024-01-02T03:04:05Z", "yesterday", 1))
	relink(t, &img)
	img.manifest = []byte(strings.Replace(string(img.manifest), fmt.Sprintf(`"size":%d`, len(old)), fmt.Sprintf(`"size":%d`, len(img.config)), 1))
	f := startBad(t, fakes.FakeOptions{}, img)
	s := badStore(t, f)
	_, err := s.Images.Pull(context.Background(), PullRequest{Ref: f.Addr + "/app:v1"})
	if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "yesterday") {
		t.Errorf("got %v, want ErrCorrupt that names the time", err)
	}
	wantClean(t, s, 0)
}

// TestCredentialsOfRequest: what a request brings goes to the registry of the image, or
// to the one that it names, and to no mirror.
func TestCredentialsOfRequest(t *testing.T) {
	img := sample(t, "auth")
	for _, c := range []struct {
		name           string
		auth           Auth
		mirror, origin bool // who gets them
	}{
		{"registry token", Auth{RegistryToken: "secret"}, false, true},
		{"password", Auth{Username: "joe", Password: "secret"}, false, true},
		{"for the mirror", Auth{RegistryToken: "secret", ServerAddress: "MIRROR"}, true, false},
		{"password for the mirror", Auth{Username: "joe", Password: "secret", ServerAddress: "https://MIRROR/v2/"}, true, false},
		{"for the registry", Auth{Username: "joe", Password: "secret", ServerAddress: "http://ORIGIN/team"}, false, true},
		{"for another", Auth{Username: "joe", Password: "secret", ServerAddress: "registry.example.com"}, false, false},
		{"token for another", Auth{RegistryToken: "secret", ServerAddress: "registry.example.com"}, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			asks := fakes.FakeOptions{Fault: func(w http.ResponseWriter, r *http.Request) bool {
				w.Header().Add("WWW-Authenticate", `Basic realm="x"`)
				if c.auth.RegistryToken != "" {
					w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/none"`, r.Host))
				}
				w.WriteHeader(http.StatusUnauthorized)
				return true
			}}
			mirror, origin := startBad(t, asks, img), startBad(t, asks, img)
			o := testOptions(t, t.TempDir(), DriverFuse)
			o.PullTimeout, o.retryDelay = patience, time.Millisecond
			writeFile(t, o.RegistriesConf, fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\n[[registry.mirror]]\nlocation = %q\ninsecure = true\n", origin.Addr, mirror.Addr))
			s := openStore(t, o)
			auth := c.auth
			auth.ServerAddress = strings.NewReplacer("MIRROR", mirror.Addr, "ORIGIN", origin.Addr).Replace(auth.ServerAddress)
			_, err := s.Images.Pull(context.Background(), PullRequest{Ref: origin.Addr + "/app:v1", Auth: &auth})
			if !errors.Is(err, ErrUnauthorized) || strings.Contains(err.Error(), "secret") {
				t.Errorf("got %v, want ErrUnauthorized without secrets", err)
			}
			if got := len(mirror.Credentials()) > 0; got != c.mirror {
				t.Errorf("the mirror got %q", mirror.Credentials())
			}
			if got := len(origin.Credentials()) > 0; got != c.origin {
				t.Errorf("the registry got %q", origin.Credentials())
			}
		})
	}
	for _, same := range []string{"docker.io", "index.docker.io", "https://index.docker.io/v1/", "registry-1.docker.io", "HTTPS://Docker.IO:443"} {
		if !(&Auth{ServerAddress: same}).isFor("docker.io", "docker.io") {
			t.Errorf("%q is not Docker's registry", same)
		}
	}
	for _, other := range []string{"docker.io.example.com", "docker.io:5000", "http://docker.io:443", "hub.docker.com"} {
		if (&Auth{ServerAddress: other}).isFor("docker.io", "docker.io") {
			t.Errorf("%q is taken for Docker's registry", other)
		}
	}
}
