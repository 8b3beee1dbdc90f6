package storage

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// registry is a running docker-registry on loopback.
type registry struct {
	host   string // 127.0.0.1:PORT
	url    string
	client *http.Client
	ca     string // path of the CA certificate with TLS
	dir    string // its storage
}

// startRegistry runs Debian's docker-registry on a free loopback port.
func startRegistry(t testing.TB, withTLS bool) *registry {
	t.Helper()
	// Relative: the tests have a /tmp of their own, and this tree may lie in the other.
	const program = "../.cache/images/sysroot/usr/bin/docker-registry"
	if _, err := os.Stat(program); err != nil {
		t.Fatalf("%v: make it by 'make test-images'", err)
	}
	dir := t.TempDir()
	r := &registry{host: fmt.Sprint("127.0.0.1:", freePort(t)), client: http.DefaultClient, dir: filepath.Join(dir, "data")}
	r.url = "http://" + r.host
	conf := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage:\n  filesystem: {rootdirectory: %s}\n  delete: {enabled: true}\nhttp:\n  addr: %s\n", r.dir, r.host)
	if withTLS {
		r.url = "https://" + r.host
		cert, key := selfSigned(t, dir)
		r.ca = cert
		conf += fmt.Sprintf("  tls: {certificate: %s, key: %s}\n", cert, key)
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM([]byte(mustRead(t, cert)))
		r.client = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	}
	cmd := exec.Command(program, "serve", writeFile(t, filepath.Join(dir, "config.yml"), conf))
	cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	// It ends with the PID namespace of the tests. Not by Pdeathsig: that is of the thread that
	// has started it, and mounts end threads.
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		resp, err := r.client.Get(r.url + "/v2/")
		if err == nil {
			resp.Body.Close()
			return r
		}
		if time.Now().After(deadline) {
			t.Fatalf("docker-registry does not answer: %v\n%s", err, log.String())
		}
	}
}

// freePort returns a port that is free, and none that the kernel gives to whoever asks for
// any meanwhile.
func freePort(t testing.TB) int {
	t.Helper()
	for range 1000 {
		port := 20000 + mathrand.IntN(10000)
		if l, err := net.Listen("tcp", fmt.Sprint(":", port)); err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no port between 20000 and 30000 is free")
	return 0
}

func selfSigned(t testing.TB, dir string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true,
		BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return writeFile(t, filepath.Join(dir, "cert.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))),
		writeFile(t, filepath.Join(dir, "key.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})))
}

// push uploads an image under repo:tag.
func (r *registry) push(t testing.TB, repo, tag string, img built) {
	t.Helper()
	for d, blob := range img.blobs {
		resp := r.do(t, "POST", r.url+"/v2/"+repo+"/blobs/uploads/", "", nil)
		to, err := url.Parse(resp.Header.Get("Location"))
		if err != nil {
			t.Fatal(err)
		}
		q := to.Query()
		q.Set("digest", d.String())
		to.RawQuery = q.Encode()
		r.do(t, "PUT", to.String(), "application/octet-stream", blob)
	}
	r.pushManifest(t, repo, tag, v1.MediaTypeImageManifest, img.manifest)
}

func (r *registry) pushManifest(t testing.TB, repo, tag, mime string, manifest []byte) {
	t.Helper()
	r.do(t, "PUT", r.url+"/v2/"+repo+"/manifests/"+tag, mime, manifest)
}

func (r *registry) do(t testing.TB, method, url, mime string, body []byte) *http.Response {
	t.Helper()
	req, err := http.NewRequest(method, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if mime != "" {
		req.Header.Set("Content-Type", mime)
	}
	resp, err := r.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	answer, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		t.Fatalf("%s %s: %s %s", method, url, resp.Status, answer)
	}
	return resp
}

// insecureConf makes the store use plain HTTP for these hosts.
func insecureConf(t testing.TB, o Options, hosts ...string) {
	t.Helper()
	var b strings.Builder
	for _, h := range hosts {
		fmt.Fprintf(&b, "[[registry]]\nlocation = %q\ninsecure = true\n", h)
	}
	writeFile(t, o.RegistriesConf, b.String())
}

// fakeRegistry serves one image (or whatever its hook wants) and counts.
type fakeRegistry struct {
	host string
	mu   sync.Mutex
	hits map[string]int
	// hook may answer a request itself: it returns true then.
	hook func(w http.ResponseWriter, r *http.Request) bool
}

func startFake(t testing.TB, img built, hook func(http.ResponseWriter, *http.Request) bool) *fakeRegistry {
	t.Helper()
	f := &fakeRegistry{hits: map[string]int{}, hook: hook}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		f.hits[r.Method+" "+r.URL.Path]++
		hook := f.hook
		f.mu.Unlock()
		if hook != nil && hook(w, r) {
			return
		}
		f.serve(w, r, img)
	}))
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	f.host = strings.TrimPrefix(server.URL, "http://")
	return f
}

func (f *fakeRegistry) setHook(hook func(http.ResponseWriter, *http.Request) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hook = hook
}

func (f *fakeRegistry) serve(w http.ResponseWriter, r *http.Request, img built) {
	switch {
	case r.URL.Path == "/v2/":
	case strings.Contains(r.URL.Path, "/manifests/"):
		w.Header().Set("Content-Type", v1.MediaTypeImageManifest)
		w.Write(img.manifest)
	case strings.Contains(r.URL.Path, "/blobs/"):
		for d, blob := range img.blobs {
			if strings.HasSuffix(r.URL.Path, d.String()) {
				http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(blob))
				return
			}
		}
		http.NotFound(w, r)
	default:
		http.NotFound(w, r)
	}
}

// count returns how many requests had a path that contains part.
func (f *fakeRegistry) count(part string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for k, hits := range f.hits {
		if strings.Contains(k, part) {
			n += hits
		}
	}
	return n
}
