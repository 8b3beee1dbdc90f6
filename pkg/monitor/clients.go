package monitor

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/monitor/wire"
)

const (
	// maxQueue is how far an attached client may be behind the container, in bytes, and
	// maxClients how many a container may have.
	maxQueue   = 1 << 20
	maxClients = 64
	// maxPacket is that of the attach connection.
	maxPacket = 16 << 10
)

// clientPatience is how long a container waits in all for an attached client that is behind,
// before that is let go. A tenth of the time that passes is added, up to this.
const clientPatience = time.Second

// clients are those that are attached to a container. None of them can hold up another;
// one that is paced holds up the container.
type clients struct {
	mu      sync.Mutex
	changed *sync.Cond // a queue has become shorter, or the container has ended
	all     map[*client]struct{}
	// free: the container has ended, or its output is given up: nobody is waited for.
	free bool
	// over: no more output comes.
	over bool
}

// client is one attached connection.
type client struct {
	conn  *net.UnixConn
	paced bool
	// patience is what is left of clientPatience, at a time.
	patience time.Duration
	at       time.Time
	// Guarded by clients.mu.
	queue   [][]byte // packets
	size    int
	dropped bool
	closed  bool
	ready   chan struct{} // something is in the queue, or over, or dropped
}

func (cl *client) wake() {
	select {
	case cl.ready <- struct{}{}:
	default:
	}
}

// add attaches a connection.
func (cs *clients) add(conn *net.UnixConn, paced bool) (*client, error) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if cs.over {
		return nil, errors.New("the container has ended")
	}
	if len(cs.all) >= maxClients {
		return nil, fmt.Errorf("%d clients are attached already", maxClients)
	}
	if cs.all == nil {
		cs.all = map[*client]struct{}{}
	}
	cl := &client{conn: conn, paced: paced, patience: clientPatience, at: time.Now(), ready: make(chan struct{}, 1)}
	cs.all[cl] = struct{}{}
	return cl, nil
}

func (cs *clients) remove(cl *client) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cl.closed, cl.queue = true, nil
	delete(cs.all, cl)
	cs.changed.Broadcast()
}

// pace waits for the clients that are behind: for the paced ones as long as it takes, for
// the others until their patience is used up, and lets these go then.
func (cs *clients) pace() {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for !cs.free {
		behind := cs.behind()
		if len(behind) == 0 {
			return
		}
		begin := time.Now()
		timer := time.AfterFunc(clientPatience/10, cs.changed.Broadcast)
		cs.changed.Wait()
		timer.Stop()
		for _, cl := range behind {
			cl.at = time.Now()
			if cl.patience -= cl.at.Sub(begin); cl.patience <= 0 && !cl.paced {
				cl.drop()
			}
		}
	}
}

func (cs *clients) behind() (all []*client) {
	now := time.Now()
	for cl := range cs.all {
		cl.patience, cl.at = min(clientPatience, cl.patience+now.Sub(cl.at)/10), now
		if !cl.dropped && cl.size > maxQueue/2 {
			all = append(all, cl)
		}
	}
	return all
}

// drop lets a client go once it has what is in its queue.
func (cl *client) drop() {
	cl.dropped = true
	packet := append([]byte{wire.PacketError}, "the client reads too slowly, the log has what follows"...)
	cl.queue = append(cl.queue, packet)
	cl.wake()
}

// release ends all waiting for clients.
func (cs *clients) release() {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.free = true
	cs.changed.Broadcast()
}

// end tells the clients that no more comes.
func (cs *clients) end() {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.over = true
	for cl := range cs.all {
		cl.wake()
	}
}

// broadcast queues output for all clients. Who is too far behind is let go.
func (c *container) broadcast(stream int, data []byte) {
	cs := &c.clients
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if len(cs.all) == 0 {
		return
	}
	for len(data) > 0 {
		n := min(len(data), maxPacket)
		packet := append([]byte{wire.PacketStdout + byte(stream)}, data[:n]...)
		data = data[n:]
		for cl := range cs.all {
			if cl.dropped {
				continue
			}
			// The container has ended, and nobody is waited for: its pipe may hold a megabyte.
			if cl.size > 2*maxQueue {
				cl.drop()
				continue
			}
			cl.queue, cl.size = append(cl.queue, packet), cl.size+n
			cl.wake()
		}
	}
}

// take returns what is to be sent next; nil when nothing is, or never will be.
func (cs *clients) take(cl *client) (packet []byte, over bool) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if len(cl.queue) == 0 {
		return nil, cs.over || cl.dropped || cl.closed
	}
	packet = cl.queue[0]
	cl.queue[0] = nil
	cl.queue = cl.queue[1:]
	return packet, false
}

// sent makes room for more.
func (cs *clients) sent(cl *client, packet []byte) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cl.size -= len(packet) - 1
	cs.changed.Broadcast()
}

// attach serves a client until either side ends. The connection is closed then.
func (c *container) attach(conn *net.UnixConn, req wire.Request) {
	cl, err := c.clients.add(conn, req.Paced)
	if err != nil {
		_ = wire.Send(conn, wire.Reply{V: wire.Version, Error: err.Error()})
		return
	}
	defer c.clients.remove(cl)
	if wire.Send(conn, wire.Reply{V: wire.Version}) != nil {
		return
	}
	go c.receive(cl, req.Stdin)
	for {
		packet, over := c.clients.take(cl)
		if over {
			return
		}
		if packet == nil {
			<-cl.ready
			continue
		}
		if _, err := conn.Write(packet); err != nil {
			return
		}
		c.clients.sent(cl, packet)
	}
}

// receive reads a client's stdin.
func (c *container) receive(cl *client, stdin bool) {
	defer cl.wake()
	buf := make([]byte, 64<<10)
	for {
		n, err := cl.conn.Read(buf)
		if n > 0 && stdin && c.stdin != nil {
			switch fed := c.writeStdin(cl.conn, buf[:n]); {
			case errors.Is(fed, unix.EPIPE):
				stdin = false
			case errors.Is(fed, errHungUp):
				err = fed
			}
		}
		if err != nil {
			break
		}
	}
	if stdin && c.stdinOnce {
		c.endStdin()
	}
	awaitHangup(cl.conn) // it may have closed its side only: the output goes on
	c.clients.remove(cl)
}

// goneCheck is how often a client whose stdin the container does not read is looked at.
const goneCheck = 100 * time.Millisecond

// errHungUp means that a client has closed its connection before the container read its stdin.
var errHungUp = errors.New("the client has gone")

// writeStdin writes what a client has sent to the container's stdin, one client at a time, and
// waits until the container reads it: as long as the client is there. errHungUp.
func (c *container) writeStdin(conn *net.UnixConn, data []byte) error {
	for taken := false; !taken; {
		select {
		case c.turn <- struct{}{}:
			taken = true
		case <-time.After(goneCheck):
			if hungUp(conn) {
				return errHungUp
			}
		}
	}
	defer func() { <-c.turn }()
	for {
		if err := c.stdin.SetWriteDeadline(time.Now().Add(goneCheck)); err != nil {
			return err
		}
		n, err := c.stdin.Write(data)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
		if data = data[n:]; hungUp(conn) {
			return errHungUp
		}
	}
}

// hungUp reports whether the other side has closed the connection, or this one has. It
// waits for nothing.
func hungUp(conn *net.UnixConn) (gone bool) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return true
	}
	err = raw.Control(func(fd uintptr) { gone = polledHangup(fd) })
	return gone || err != nil
}

// awaitHangup waits until the other side has closed the connection, or this one has.
func awaitHangup(conn *net.UnixConn) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Read(polledHangup)
}

func polledHangup(fd uintptr) bool {
	p := []unix.PollFd{{Fd: int32(fd)}}
	_, err := unix.Poll(p, 0)
	return err == nil && p[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
}
