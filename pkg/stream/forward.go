package stream

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"

	"golang.org/x/net/websocket"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// servePortForward runs a port-forward session, which may hold any number of
// connections, over the protocol that the client asks for.
func (s *Server) servePortForward(w http.ResponseWriter, r *http.Request, req *runtimeapi.PortForwardRequest) {
	f := &forwarder{backend: s.backend, ctx: r.Context()}
	defer f.wait()
	serve := func(w http.ResponseWriter, r *http.Request) {
		portforward.ServePortForward(w, r, f, req.PodSandboxId, "", &portforward.V4Options{Ports: req.Port},
			s.options.IdleTimeout, s.options.CreationTimeout, portforward.SupportedProtocols)
	}
	switch {
	case wsstream.IsWebSocketRequestWithTunnelingProtocol(r):
		serveTunnel(w, r, serve)
	case wsstream.IsWebSocketRequest(r) && len(req.Port) == 0:
		http.Error(w, "a WebSocket client of this kind must name its ports in PortForwardRequest.port", http.StatusBadRequest)
	default:
		serve(w, r)
	}
}

// maxForwards bounds the connections of one session at a time: each costs two
// buffers of 32 KiB.
const maxForwards = 512

// forwarder gives the connections of one session its context, and knows when
// all of them have ended: the library waits for none of them.
type forwarder struct {
	backend Backend
	ctx     context.Context

	mu     sync.Mutex
	ended  bool
	open   int
	active sync.WaitGroup
}

// PortForward implements portforward.PortForwarder.
func (f *forwarder) PortForward(_ context.Context, podID, _ string, port int32, stream io.ReadWriteCloser) error {
	f.mu.Lock()
	if f.ended {
		f.mu.Unlock()
		return errors.New("the session has ended")
	}
	if f.open >= maxForwards {
		f.mu.Unlock()
		return fmt.Errorf("more than %d connections in one port-forward session", maxForwards)
	}
	f.open++
	f.active.Add(1)
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		f.open--
		f.mu.Unlock()
		f.active.Done()
	}()
	return f.backend.PortForward(f.ctx, podID, port, stream)
}

// wait ends the session and waits for its connections.
func (f *forwarder) wait() {
	f.mu.Lock()
	f.ended = true
	f.mu.Unlock()
	if c := connOf(f.ctx); c != nil { // otherwise there are no connections
		_ = c.Close() // ends f.ctx
	}
	f.active.Wait()
}

// serveTunnel serves a SPDY session inside a WebSocket: the bytes of SPDY in
// binary messages, under the subprotocol SPDY/3.1+portforward.k8s.io.
func serveTunnel(w http.ResponseWriter, r *http.Request, serve func(http.ResponseWriter, *http.Request)) {
	server := websocket.Server{
		Handshake: func(c *websocket.Config, _ *http.Request) error {
			if !slices.Contains(c.Protocol, portforward.WebsocketsSPDYTunnelingPortForwardV1) {
				return fmt.Errorf("none of the subprotocols %q is known", c.Protocol)
			}
			c.Protocol = []string{portforward.WebsocketsSPDYTunnelingPortForwardV1}
			return nil
		},
		Handler: func(ws *websocket.Conn) {
			defer ws.Close()
			ws.PayloadType = websocket.BinaryFrame
			inner := r.Clone(r.Context())
			inner.Header = http.Header{}
			inner.Header.Set(httpstream.HeaderConnection, httpstream.HeaderUpgrade)
			inner.Header.Set(httpstream.HeaderUpgrade, spdy.HeaderSpdy31)
			inner.Header.Set(httpstream.HeaderProtocolVersion, portforward.ProtocolV1Name)
			serve(&tunnelWriter{conn: ws, header: http.Header{}}, inner)
		},
	}
	server.ServeHTTP(w, r)
}

// tunnelWriter is the ResponseWriter of a request that was never sent: the
// upgrade to SPDY has been agreed on by the WebSocket's handshake already, so
// what the library answers goes nowhere, and what it takes over is the WebSocket.
type tunnelWriter struct {
	conn   *websocket.Conn
	header http.Header
}

// Header implements http.ResponseWriter.
func (t *tunnelWriter) Header() http.Header { return t.header }

// Write implements http.ResponseWriter.
func (t *tunnelWriter) Write(b []byte) (int, error) { return len(b), nil }

// WriteHeader implements http.ResponseWriter.
func (t *tunnelWriter) WriteHeader(int) {}

// Hijack implements http.Hijacker.
func (t *tunnelWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return t.conn, bufio.NewReadWriter(bufio.NewReader(&spdyReader{r: t.conn}), bufio.NewWriter(t.conn)), nil
}
