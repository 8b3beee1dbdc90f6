package rpc

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/peer"
)

// Client is the process at the other end of a connection, as it was when it connected.
// IDs are those of the server's namespaces; PID is 0 for a process that has none there.
type Client struct {
	UID, PID int
	Program  string // name of the process (comm of proc(5))
}

// clientAddr is the address of a connection's other end.
type clientAddr struct {
	net.Addr
	client Client
}

// Listener is a listener whose connections know their clients (SO_PEERCRED of unix(7)),
// for ClientOf. Make one with Identify.
type Listener struct {
	net.Listener

	mu    sync.Mutex
	conns map[*identified]struct{}
	shut  bool
}

// Identify returns a Listener that accepts what l does.
func Identify(l net.Listener) *Listener {
	return &Listener{Listener: l, conns: map[*identified]struct{}{}}
}

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	client := Client{UID: -1}
	if u, ok := conn.(*net.UnixConn); ok {
		client = clientOf(u)
	}
	c := &identified{conn, clientAddr{conn.RemoteAddr(), client}, l}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.shut {
		_ = conn.Close()
	} else {
		l.conns[c] = struct{}{}
	}
	return c, nil
}

// Shut closes all connections that were accepted, and those that are accepted from now
// on. A grpc.Server that is stopped waits up to two minutes for clients that have
// connected and say nothing, in Stop as in GracefulStop; not for those that are gone.
// Idempotent.
func (l *Listener) Shut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.shut = true
	for c := range l.conns {
		_ = c.Conn.Close()
	}
	clear(l.conns)
}

func clientOf(c *net.UnixConn) Client {
	unknown := Client{UID: -1}
	raw, err := c.SyscallConn()
	if err != nil {
		return unknown
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err != nil || credErr != nil {
		return unknown
	}
	out := Client{UID: int(cred.Uid), PID: int(cred.Pid)}
	if out.PID > 0 {
		if name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", out.PID)); err == nil {
			out.Program = strings.TrimSpace(string(name))
		}
	}
	return out
}

type identified struct {
	net.Conn
	addr     clientAddr
	listener *Listener
}

// Close implements net.Conn.
func (c *identified) Close() error {
	c.listener.mu.Lock()
	delete(c.listener.conns, c)
	c.listener.mu.Unlock()
	return c.Conn.Close()
}

// RemoteAddr implements net.Conn.
func (c *identified) RemoteAddr() net.Addr { return c.addr }

// ClientOf returns who has sent the request with the context; UID -1 when that is not
// known.
func ClientOf(ctx context.Context) Client {
	if p, ok := peer.FromContext(ctx); ok {
		if a, ok := p.Addr.(clientAddr); ok {
			return a.client
		}
	}
	return Client{UID: -1}
}
