package fetch

import (
	"context"
	"net"
	"net/http"
	"sync"
)

// Bounds of connections to a proxy. Everybody on the machine can open some: those that
// have not shown the secret give way to newer ones, so that nobody keeps the library out.
const (
	maxConnections = 128
	maxStrangers   = 16
)

// guests are the connections to a proxy.
type guests struct {
	mu        sync.Mutex
	strangers []net.Conn // oldest first
	known     map[net.Conn]bool
}

// guestKey is the key of a request's connection in its context.
type guestKey struct{}

// changed notes a connection that begins or ends (http.Server.ConnState).
func (g *guests) changed(c net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		g.arrived(c)
	case http.StateClosed, http.StateHijacked:
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.known, c)
		g.forget(c)
	}
}

func (g *guests) arrived(c net.Conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.strangers = append(g.strangers, c)
	if len(g.strangers) > maxStrangers || len(g.strangers)+len(g.known) > maxConnections {
		_ = g.strangers[0].Close()
		g.strangers = g.strangers[1:]
	}
}

// forget removes c from the strangers, and reports whether it was one.
func (g *guests) forget(c net.Conn) bool {
	for i, s := range g.strangers {
		if s == c {
			g.strangers = append(g.strangers[:i:i], g.strangers[i+1:]...)
			return true
		}
	}
	return false
}

// know notes that the connection of a request has shown the secret.
func (g *guests) know(r *http.Request) {
	c, _ := r.Context().Value(guestKey{}).(net.Conn)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.forget(c) {
		if g.known == nil {
			g.known = map[net.Conn]bool{}
		}
		g.known[c] = true
	}
}

func withGuest(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, guestKey{}, c)
}
