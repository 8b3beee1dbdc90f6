package stream

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// clientConn is a client's connection. Its context ends with it: HTTP's own
// context outlives the client once a session has taken the connection over.
//
// A session's connection is closed in three steps, because close(2) loses data
// in two ways: what waits in the send queue is thrown away as soon as the client
// sends anything more (the kernel answers with a reset), or at once when
// something from the client is unread. And clients do send: client-go pings
// every 5 s, and stdin may be left over.
//
//  1. flush, before the session's status is written: the session goes on, and
//     answers pings, until the client's side has taken all output.
//  2. Close shuts down the sending side only: what is queued is sent, then the
//     end of the stream.
//  3. drain discards what the client still sends until the client closes, and
//     only then closes the connection.
//
// No step lasts longer than the idle timeout without progress, which is that the
// client's side has acknowledged bytes: what a client sends is no progress.
type clientConn struct {
	net.Conn
	server *Server
	ctx    context.Context
	cancel context.CancelFunc
	closed chan struct{} // once nothing is left of the connection

	accepted time.Time

	taken atomic.Bool   // over from HTTP, by a session
	lost  atomic.Bool   // the client has closed or reset its side, or takes nothing
	reads atomic.Uint64 // odd while a read is under way

	mu      sync.Mutex
	closing bool
}

// connKey finds the clientConn in the context of a request.
type connKey struct{}

// connOf returns the connection of a request's context if a session has taken
// it over, or nil. One that is HTTP's still has an answer to deliver.
func connOf(ctx context.Context) *clientConn {
	if c, ok := ctx.Value(connKey{}).(*clientConn); ok && c.taken.Load() {
		return c
	}
	return nil
}

// Read implements net.Conn. Every protocol here keeps reading, so that a
// client's end is seen as the error of a read; see watch for the exception.
func (c *clientConn) Read(b []byte) (int, error) {
	if c.isClosing() {
		return 0, net.ErrClosed
	}
	c.reads.Add(1)
	n, err := c.Conn.Read(b)
	c.reads.Add(1)
	if c.isClosing() {
		return 0, net.ErrClosed
	}
	// Taking a connection over from HTTP stops a read by its deadline.
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		c.setLost()
	}
	return n, err
}

// Write implements net.Conn. A client that takes nothing of b for the idle
// timeout is lost. (SPDY's own idle timeout cannot end a session whose write
// blocks: it waits for that write.)
func (c *clientConn) Write(b []byte) (int, error) {
	if c.taken.Load() {
		if err := c.SetWriteDeadline(time.Now().Add(c.server.options.IdleTimeout)); err != nil {
			return 0, err
		}
	}
	n, err := c.Conn.Write(b)
	if err != nil && !c.isClosing() {
		c.setLost()
	}
	return n, err
}

// setLost records that the client is gone: nothing can be delivered any more.
func (c *clientConn) setLost() {
	c.lost.Store(true)
	c.cancel()
}

func (c *clientConn) isClosing() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closing
}

// SetDeadline implements net.Conn.
func (c *clientConn) SetDeadline(t time.Time) error { return c.setDeadline(c.Conn.SetDeadline, t) }

// SetReadDeadline implements net.Conn.
func (c *clientConn) SetReadDeadline(t time.Time) error {
	return c.setDeadline(c.Conn.SetReadDeadline, t)
}

// SetWriteDeadline implements net.Conn.
func (c *clientConn) SetWriteDeadline(t time.Time) error {
	return c.setDeadline(c.Conn.SetWriteDeadline, t)
}

// setDeadline fails once Close was called: the deadlines are drain's then.
func (c *clientConn) setDeadline(set func(time.Time) error, t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return net.ErrClosed
	}
	return set(t)
}

// Close implements net.Conn. It ends the context and all reads and writes, and
// returns at once; the channel closed is closed when the connection is. It is
// idempotent.
func (c *clientConn) Close() error {
	c.cancel()
	c.mu.Lock()
	if c.closing {
		c.mu.Unlock()
		return nil
	}
	c.closing = true
	_ = c.Conn.SetDeadline(time.Unix(1, 0))
	c.mu.Unlock()
	tcp, ok := c.Conn.(interface{ CloseWrite() error })
	if !ok || !c.taken.Load() || c.lost.Load() || tcp.CloseWrite() != nil {
		return c.finish()
	}
	go c.drain()
	return nil
}

// finish closes the connection for good.
func (c *clientConn) finish() error {
	c.server.mu.Lock()
	delete(c.server.conns, c)
	c.server.mu.Unlock()
	defer close(c.closed)
	return c.Conn.Close()
}

// abort closes the connection although data is undelivered. It is idempotent.
func (c *clientConn) abort() {
	c.setLost()
	_ = c.Close()
	_ = c.Conn.Close() // ends drain
}

// flush waits until the client's side has taken all that was written. It
// returns early when the client is gone or takes nothing for the idle timeout;
// the latter closes the connection.
func (c *clientConn) flush() {
	p := c.newProgress(unix.SIOCOUTQNSD)
	for wait := time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		if p.look() == 0 {
			return
		}
		if p.idle() > c.server.options.IdleTimeout {
			c.abort()
			return
		}
		select {
		case <-time.After(wait):
		case <-c.ctx.Done():
			return
		}
	}
}

// drain discards what the client sends until the client closes its side, then
// closes the connection. A client that does not is disconnected after the idle
// timeout without progress, or after the close timeout when it has everything.
func (c *clientConn) drain() {
	defer func() { _ = c.finish() }()
	o := &c.server.options
	tick := min(time.Second, o.IdleTimeout/4, o.CloseTimeout/4)
	p := c.newProgress(unix.SIOCOUTQ)
	buf := make([]byte, 8<<10)
	for {
		bound := o.IdleTimeout
		if p.look() == 0 {
			bound = min(bound, o.CloseTimeout)
		}
		if p.idle() > bound {
			return
		}
		if err := c.Conn.SetReadDeadline(time.Now().Add(tick)); err != nil {
			return
		}
		if _, err := c.Conn.Read(buf); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
	}
}

// watch aborts the connection of a client that has closed it while nobody
// reads: the libraries read on only once the data before has been taken, and
// stdin that a command does not read is never taken.
func (c *clientConn) watch() {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for last := c.reads.Load(); ; {
		select {
		case <-ticker.C:
		case <-c.ctx.Done():
			return
		}
		now := c.reads.Load()
		if now == last && now%2 == 0 && c.peerClosed() {
			c.abort()
			return
		}
		last = now
	}
}

// peerClosed reports whether the client has closed or reset its side.
func (c *clientConn) peerClosed() (closed bool) {
	c.control(func(fd int) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		n, err := unix.Poll(p, 0)
		closed = err == nil && n == 1
	})
	return closed
}

func (c *clientConn) control(f func(fd int)) {
	if sc, ok := c.Conn.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			_ = raw.Control(func(fd uintptr) { f(int(fd)) })
		}
	}
}

// progress observes how a client takes what is in the send queue.
type progress struct {
	conn  *clientConn
	queue uint // SIOCOUTQ: not acknowledged; SIOCOUTQNSD: not even sent (tcp(7))
	left  int
	moved time.Time
}

func (c *clientConn) newProgress(queue uint) *progress {
	return &progress{conn: c, queue: queue, left: -1, moved: time.Now()}
}

// look returns how many bytes are left in the queue.
func (p *progress) look() int {
	left := 0
	p.conn.control(func(fd int) {
		if n, err := unix.IoctlGetInt(fd, p.queue); err == nil {
			left = n
		}
	})
	if left != p.left {
		p.left, p.moved = left, time.Now()
	}
	return left
}

// idle returns for how long nothing has moved.
func (p *progress) idle() time.Duration { return time.Since(p.moved) }
