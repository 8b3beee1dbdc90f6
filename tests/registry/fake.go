package registry

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// Fake is a registry in memory that misbehaves as it is told. It counts what it sends.
type Fake struct {
	Addr string // host:port, plain HTTP

	server *httptest.Server
	mu     sync.Mutex
	o      FakeOptions
	blobs  map[digest.Digest][]byte
	tags   map[string]Manifest // by "repo:tag" and "repo@digest"
	gets   map[string]int      // by method and path
	whole  map[string]int      // blobs that were sent from their first byte to their last
	sent   int64               // bytes of blobs
	auth   []string            // Authorization headers
}

// Manifest is what a fake registry sends for a tag.
type Manifest struct {
	Type string
	Data []byte
}

// FakeOptions say how a Fake misbehaves.
type FakeOptions struct {
	// CutAfter breaks each connection after that many bytes of it, 0 never.
	CutAfter int64
	// Reset breaks them by a reset.
	Reset bool
	// NoRanges ignores Range headers.
	NoRanges bool
	// Fault sees each request first; true means that it has answered.
	Fault func(http.ResponseWriter, *http.Request) bool
}

// NewFake starts a registry that has nothing. Close ends it.
func NewFake(o FakeOptions) *Fake {
	f := &Fake{o: o, blobs: map[digest.Digest][]byte{}, tags: map[string]Manifest{}, gets: map[string]int{}, whole: map[string]int{}}
	f.server = httptest.NewUnstartedServer(f)
	if o.CutAfter > 0 {
		f.server.Listener = cutter{f.server.Listener, o}
	}
	f.server.Start()
	f.Addr = f.server.Listener.Addr().String()
	return f
}

// Close ends the registry and its connections.
func (f *Fake) Close() {
	f.server.CloseClientConnections()
	f.server.Close()
}

// SetFault changes FakeOptions.Fault.
func (f *Fake) SetFault(fault func(http.ResponseWriter, *http.Request) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.o.Fault = fault
}

// Push makes an image available as repo:tag and repo@digest.
func (f *Fake) Push(repo, tag, mime string, manifest []byte, blobs map[digest.Digest][]byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tags[repo+":"+tag] = Manifest{mime, manifest}
	f.tags[repo+":"+digest.FromBytes(manifest).String()] = Manifest{mime, manifest}
	for d, b := range blobs {
		f.blobs[d] = b
	}
}

// Sent returns how many bytes of blobs were sent so far.
func (f *Fake) Sent() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sent
}

// Whole returns how often a blob was sent from its first byte to its last by one answer.
func (f *Fake) Whole(d digest.Digest) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.whole[d.String()]
}

// Requests returns how many requests had a method and path that contain part.
func (f *Fake) Requests(part string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for k, times := range f.gets {
		if strings.Contains(k, part) {
			n += times
		}
	}
	return n
}

// Credentials returns the Authorization headers that were received, "" left out.
func (f *Fake) Credentials() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.auth...)
}

// ServeHTTP answers as a registry does.
func (f *Fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.gets[r.Method+" "+r.URL.Path]++
	if a := r.Header.Get("Authorization"); a != "" {
		f.auth = append(f.auth, a)
	}
	fault := f.o.Fault
	f.mu.Unlock()
	if fault != nil && fault(w, r) {
		return
	}
	f.Answer(w, r)
}

// Answer answers a request well.
func (f *Fake) Answer(w http.ResponseWriter, r *http.Request) {
	rest := strings.TrimPrefix(r.URL.Path, "/v2/")
	if repo, name, ok := strings.Cut(rest, "/manifests/"); ok {
		f.mu.Lock()
		m, ok := f.tags[repo+":"+name]
		f.mu.Unlock()
		if !ok {
			fail(w, http.StatusNotFound, "MANIFEST_UNKNOWN")
			return
		}
		w.Header().Set("Content-Type", m.Type)
		w.Header().Set("Docker-Content-Digest", digest.FromBytes(m.Data).String())
		w.Write(m.Data)
		return
	}
	if _, name, ok := strings.Cut(rest, "/blobs/"); ok {
		f.mu.Lock()
		blob, ok := f.blobs[digest.Digest(name)]
		f.mu.Unlock()
		if !ok {
			fail(w, http.StatusNotFound, "BLOB_UNKNOWN")
			return
		}
		f.sendBlob(w, r, name, blob)
		return
	}
	if rest != "" {
		http.NotFound(w, r)
	}
}

func (f *Fake) sendBlob(w http.ResponseWriter, r *http.Request, name string, blob []byte) {
	if f.o.NoRanges {
		r.Header.Del("Range")
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	c := &counted{ResponseWriter: w, f: f}
	http.ServeContent(c, r, "", time.Time{}, bytes.NewReader(blob))
	if r.Method == http.MethodGet && c.n == int64(len(blob)) {
		f.mu.Lock()
		f.whole[name]++
		f.mu.Unlock()
	}
}

// counted counts the bytes of a body that could be written.
type counted struct {
	http.ResponseWriter
	f *Fake
	n int64
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.n += int64(n)
	c.f.mu.Lock()
	c.f.sent += int64(n)
	c.f.mu.Unlock()
	return n, err
}

func fail(w http.ResponseWriter, code int, name string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	fmt.Fprintf(w, `{"errors":[{"code":%q,"message":%q}]}`, name, strings.ToLower(name))
}

// cutter breaks the connections that it accepts.
type cutter struct {
	net.Listener
	o FakeOptions
}

func (l cutter) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &cutConn{Conn: c, left: l.o.CutAfter, reset: l.o.Reset}, nil
}

// cutConn is a connection with a bound on what is written.
type cutConn struct {
	net.Conn
	mu    sync.Mutex
	left  int64
	reset bool
}

func (c *cutConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := int64(len(p))
	if n <= c.left {
		c.left -= n
		return c.Conn.Write(p)
	}
	written, _ := c.Conn.Write(p[:c.left])
	c.left = 0
	if tcp, ok := c.Conn.(*net.TCPConn); ok && c.reset {
		tcp.SetLinger(0)
	}
	c.Conn.Close()
	return written, net.ErrClosed
}
