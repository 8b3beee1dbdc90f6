// Package fetch reads manifests and blobs from registries over lines that break,
// and from registries that misbehave.
//
// containers/image opens its own connections, and lets nobody beneath them. So a
// Proxy stands between: an HTTP proxy on loopback, one for each pull, which only the
// holder of its URL may use. The library asks it in plain HTTP, without credentials,
// and it asks the registry:
//
//	containers/image --HTTP, loopback--> Proxy --HTTPS, credentials--> endpoints
//
// A request is sent again where that may help: after 408, 429, server errors (5xx but 501,
// 505 and 511) and broken connections, with growing delays. A blob whose transfer breaks
// goes on where it stopped, from the same endpoint or from the next one; where the registry
// knows no ranges, or sends another one, the part that is here already is read again and
// dropped. Blobs that several
// pulls want at a time are downloaded once (see Spool), and a process that reads one from its
// file need not ask the proxy for it (see Proxy.Lend).
package fetch

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Endpoint is a registry, or a mirror of one, that has the image.
type Endpoint struct {
	Host string // host[:port], as the library addresses it
	Repo string // path of the repository there
	// Insecure allows certificates that can't be verified, and plain HTTP.
	Insecure bool
	// Local allows plain HTTP where the endpoint does not speak HTTPS.
	Local bool
	// Namespace is sent as the query parameter "ns", unless it is empty.
	Namespace string
	// TLS has the certificates of certs.d; nil is the system's.
	TLS         *tls.Config
	Credentials Credentials
}

// Credentials are sent to one endpoint, and to the token server that it names.
type Credentials struct {
	Username, Password string
	// IdentityToken is an OAuth2 refresh token, RegistryToken a bearer token.
	IdentityToken, RegistryToken string
}

// Config says what a Proxy serves.
type Config struct {
	Endpoints []Endpoint // in the order in which they are asked
	// Elsewhere are servers, HOST:PORT, that have signatures: the library may reach them
	// through the proxy, and nothing else.
	Elsewhere []string
	Spool     *Spool // nil: blobs are passed on without being kept
	UserAgent string
	// Timeout is how long an endpoint may send next to nothing. One that is not the
	// last gets a quarter of it.
	Timeout time.Duration
	// Delay is the wait before the second attempt, about; it doubles with each.
	Delay time.Duration
	Log   *slog.Logger
}

// Proxy is the local end of one pull. All methods are safe for concurrent use.
type Proxy struct {
	cfg       Config
	endpoints []*endpoint
	secret    string
	addr      string
	server    *http.Server
	guests    guests
	aside     aside
	ctx       context.Context
	cancel    context.CancelCauseFunc
	work      sync.WaitGroup // downloads into the spool

	moved     atomic.Int64             // see Moved
	preferred atomic.Pointer[endpoint] // which has served a manifest last: asked first for a blob that is lent

	// requests and wholes bound what is served at a time: the library may have been
	// taken over by what it read, and the memory is the server's.
	requests, wholes chan struct{}

	mu    sync.Mutex
	shut  bool
	err   error            // the last failure that no later success made up for
	blobs map[string]*blob // of the spool, that this pull uses
	lost  *Error           // the failure of a blob that nobody has
	asked *asked           // see Ask
}

// Start starts a proxy that serves until Close, or until ctx ends.
func Start(ctx context.Context, cfg Config) (*Proxy, error) {
	cfg.Spool.tidy()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for the image library: %w", err)
	}
	p := &Proxy{cfg: cfg, addr: l.Addr().String(), secret: newSecret(), blobs: map[string]*blob{},
		requests: make(chan struct{}, maxRequests), wholes: make(chan struct{}, maxWholes)}
	p.ctx, p.cancel = context.WithCancelCause(ctx)
	for i, e := range cfg.Endpoints {
		p.endpoints = append(p.endpoints, newEndpoint(p, e, i == len(cfg.Endpoints)-1))
	}
	p.server = &http.Server{Handler: p, ReadHeaderTimeout: clientTimeout, IdleTimeout: clientTimeout, MaxHeaderBytes: maxRequestHeader,
		ConnState: p.guests.changed, ConnContext: withGuest,
		ErrorLog:    slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
		BaseContext: func(net.Listener) context.Context { return p.ctx }}
	p.work.Go(func() { p.server.Serve(l) })
	return p, nil
}

// clientTimeout bounds the request line and headers of the library, or of a stranger, and
// the time between two requests of a connection.
const clientTimeout = 10 * time.Second

// maxRequests bounds the requests that are served at a time, maxWholes those among them
// whose answers are kept in memory, and maxRequestHeader the bytes of their headers.
const (
	maxRequests      = 64
	maxWholes        = 4
	maxRequestHeader = 64 << 10
)

func newSecret() string {
	var b [16]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// Close ends the proxy and waits for its requests and downloads. Blobs that are whole stay in the
// spool, for another attempt, if keep is set.
func (p *Proxy) Close(keep bool) {
	p.mu.Lock()
	p.shut = true
	p.mu.Unlock()
	p.cancel(nil)
	p.server.Close()
	p.work.Wait()
	p.aside.clear(true)
	for _, e := range p.endpoints {
		e.close()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, b := range p.blobs {
		p.cfg.Spool.release(b, keep)
	}
	p.blobs = nil
}

// Moved counts what has got on: pieces of content of a size that matters, answers,
// and waits that a registry asked for. As long as it grows, the pull is alive.
func (p *Proxy) Moved() int64 { return p.moved.Load() }

// Err returns why the last request failed that no other endpoint made up for, or nil.
// It says more than what the library makes of the answer.
func (p *Proxy) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// setErr notes how the last request ended.
func (p *Proxy) setErr(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err = err
}
