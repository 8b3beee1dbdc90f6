package stream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"time"

	"github.com/go-logr/logr"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// Server serves streaming sessions. Make one with New.
type Server struct {
	backend Backend
	options Options
	base    *url.URL
	tokens  tokens
	http    *http.Server

	mu       sync.Mutex
	conns    map[*clientConn]struct{}
	sessions sync.WaitGroup
	active   int // sessions
	isClosed bool
}

func (s *Server) newHTTPServer() *http.Server {
	mux := http.NewServeMux()
	for _, kind := range []string{kindExec, kindAttach, kindPortForward} {
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			mux.HandleFunc(method+" /"+kind+"/{token}", func(w http.ResponseWriter, r *http.Request) {
				s.open(kind, w, r)
			})
		}
	}
	return &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       time.Minute, // between requests; a session is none
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(s.options.Log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if cc, ok := c.(*clientConn); ok {
				return cc.ctx
			}
			return ctx
		},
		ConnState: func(c net.Conn, state http.ConnState) {
			if cc, ok := c.(*clientConn); ok && state == http.StateHijacked {
				cc.taken.Store(true)
				go cc.watch()
			}
		},
	}
}

// open runs the session that a token stands for.
func (s *Server) open(kind string, w http.ResponseWriter, r *http.Request) {
	request, ok := s.tokens.take(kind, r.PathValue("token"))
	if !ok {
		http.Error(w, "unknown, used or expired token", http.StatusNotFound)
		return
	}
	if err := s.begin(); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	defer s.end()
	start := time.Now()
	if !wsstream.IsWebSocketRequest(r) {
		w = spdyWriter{w}
	}
	switch req := request.(type) {
	case *runtimeapi.ExecRequest:
		s.serveCommand(w, r, newExecSession(s.backend, req))
	case *runtimeapi.AttachRequest:
		s.serveCommand(w, r, newAttachSession(s.backend, req))
	case *runtimeapi.PortForwardRequest:
		s.servePortForward(w, r, req)
	}
	s.options.Log.Debug("streaming session ended", "kind", kind, "duration", time.Since(start))
	// The library may leave the connection open, as when a client opened fewer
	// streams than it announced. The session counts until the client has all.
	if c := connOf(r.Context()); c != nil {
		_ = c.Close()
		<-c.closed
	}
}

// begin counts a session in. ErrClosed, ErrTooMany.
func (s *Server) begin() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.isClosed:
		return ErrClosed
	case s.active >= s.options.MaxSessions:
		return ErrTooMany
	}
	s.active++
	s.sessions.Add(1)
	return nil
}

func (s *Server) end() {
	s.mu.Lock()
	s.active--
	s.mu.Unlock()
	s.sessions.Done()
}

func (s *Server) closed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.isClosed
}

// Serve serves on all listeners, and closes them at its end. It returns nil
// after Close, or else the error of the first listener that failed.
func (s *Server) Serve(listeners ...net.Listener) error {
	errs := make(chan error, len(listeners))
	for _, l := range listeners {
		go func() { errs <- s.http.Serve(&listener{Listener: l, server: s}) }()
	}
	var first error
	for range listeners {
		if err := <-errs; err != nil && !errors.Is(err, http.ErrServerClosed) && first == nil {
			first = fmt.Errorf("serve streaming sessions: %w", err)
		}
		_ = s.http.Close() // one gone, all gone
	}
	return first
}

// closeGrace is how long Close waits for clients to take what ended sessions
// have left for them.
const closeGrace = time.Second

// Close ends all sessions and listeners, and waits until the backend's calls
// have returned. Clients that read get all that was written before; those that
// do not are disconnected after a second. It is idempotent.
func (s *Server) Close() error {
	s.mu.Lock()
	s.isClosed = true
	conns := make([]*clientConn, 0, len(s.conns))
	for c := range s.conns {
		conns = append(conns, c)
	}
	s.mu.Unlock()
	err := s.http.Close()
	// http.Server forgets connections that a session took over.
	for _, c := range conns {
		_ = c.Close()
	}
	grace := time.NewTimer(closeGrace)
	defer grace.Stop()
	for _, c := range conns {
		select {
		case <-c.closed:
		case <-grace.C:
			for _, c := range conns {
				c.abort()
			}
		}
	}
	s.sessions.Wait()
	return err
}

// listener wraps what it accepts into clientConns.
type listener struct {
	net.Listener
	server *Server
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &clientConn{Conn: conn, server: l.server, accepted: time.Now(), closed: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	// What the library has to say of a session goes to our log. (What it says
	// without a context goes to klog, which is main's to direct.)
	ctx = klog.NewContext(ctx, logr.FromSlogHandler(debugOnly{l.server.options.Log.Handler()}))
	c.ctx, c.cancel = context.WithValue(ctx, connKey{}, c), cancel
	l.server.mu.Lock()
	var unwanted *clientConn
	if l.server.isClosed {
		unwanted = c
	} else if len(l.server.conns) >= 2*l.server.options.MaxSessions {
		// Whoever can connect can also keep connections open, but not keep others out.
		if unwanted = l.server.oldestIdle(); unwanted == nil {
			unwanted = c
		}
	}
	l.server.conns[c] = struct{}{}
	l.server.mu.Unlock()
	if unwanted != nil {
		_ = unwanted.Close()
	}
	return c, nil
}

// oldestIdle returns the oldest connection without a session, or nil. The caller holds
// s.mu.
func (s *Server) oldestIdle() (oldest *clientConn) {
	for c := range s.conns {
		if !c.taken.Load() && !c.isClosing() && (oldest == nil || c.accepted.Before(oldest.accepted)) {
			oldest = c
		}
	}
	return oldest
}

// debugOnly logs everything at the level debug: the library calls it an error
// when a client hangs up.
type debugOnly struct{ slog.Handler }

// Enabled implements slog.Handler.
func (d debugOnly) Enabled(ctx context.Context, _ slog.Level) bool {
	return d.Handler.Enabled(ctx, slog.LevelDebug)
}

// Handle implements slog.Handler.
func (d debugOnly) Handle(ctx context.Context, r slog.Record) error {
	r.Level = slog.LevelDebug
	return d.Handler.Handle(ctx, r)
}

// ListenFunc opens a listener, as net.Listen does, in some network namespace.
type ListenFunc func(network, address string) (net.Listener, error)

// Listen opens the same port of addr through each of the functions: one in the
// host's and one in the node's network namespace, so that one URL is good in
// both. With port 0 it looks for a port that is free everywhere. On an error
// nothing is left open.
func Listen(addr netip.Addr, port uint16, funcs ...ListenFunc) ([]net.Listener, error) {
	const tries = 32
	var err error
	for range tries {
		var ls []net.Listener
		if ls, err = listenAll(netip.AddrPortFrom(addr, port), funcs); err == nil || port != 0 {
			return ls, err
		}
	}
	return nil, err
}

func listenAll(at netip.AddrPort, funcs []ListenFunc) (ls []net.Listener, err error) {
	defer func() {
		if err != nil {
			for _, l := range ls {
				_ = l.Close()
			}
			ls = nil
		}
	}()
	for i, listen := range funcs {
		l, err := listen("tcp", at.String())
		if err != nil {
			return ls, fmt.Errorf("listen for streaming sessions on %s (namespace %d of %d): %w", at, i+1, len(funcs), err)
		}
		ls = append(ls, l)
		if at.Port() == 0 {
			tcp, ok := l.Addr().(*net.TCPAddr)
			if !ok {
				return ls, fmt.Errorf("listen for streaming sessions: %s is no TCP address", l.Addr())
			}
			at = netip.AddrPortFrom(at.Addr(), uint16(tcp.Port))
		}
	}
	return ls, nil
}
