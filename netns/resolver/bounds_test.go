package resolver

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// pipes is a listener whose connections come from the addresses that are dialed from.
type pipes struct{ conns chan net.Conn }

type pipeEnd struct {
	net.Conn
	from netip.Addr
}

func (p pipeEnd) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(p.from, 1024))
}

func (p pipes) Accept() (net.Conn, error) {
	c, ok := <-p.conns
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

func (p pipes) Close() error   { close(p.conns); return nil }
func (p pipes) Addr() net.Addr { return nil }

func (p pipes) dial(from netip.Addr) net.Conn {
	ours, theirs := net.Pipe()
	p.conns <- pipeEnd{theirs, from}
	return ours
}

// TestLateQuestion: a question that comes when a connection has been idle for nearly as
// long as it may be is answered, however long a server outside takes.
func TestLateQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer()
		s.Upstreams = func() []netip.Addr { return []netip.Addr{dbAddr} }
		s.Dial = func(string, netip.Addr) (net.Conn, error) {
			ours, theirs := net.Pipe()
			go func() {
				q, err := readMessage(theirs, maxTCP)
				if err != nil {
					return
				}
				time.Sleep(tryTimeout - time.Millisecond)
				q[2] |= 0x80
				_ = writeMessage(theirs, q)
			}()
			return ours, nil
		}
		l := pipes{make(chan net.Conn)}
		go s.ServeTCP("a", l)
		defer l.Close()
		c := l.dial(webAddr)
		defer c.Close()
		time.Sleep(idleTimeout - time.Second)
		must(t, writeMessage(c, ask(t, "example.org.", dnsmessage.TypeA, 0)))
		if _, err := readMessage(c, maxTCP); err != nil {
			t.Errorf("no answer: %v", err)
		}
	})
}

// TestLongQuestion: what a connection says that it is going to send is not what it gets
// as memory.
func TestLongQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer()
		l := pipes{make(chan net.Conn)}
		go s.ServeTCP("a", l)
		defer l.Close()
		c := l.dial(webAddr)
		defer c.Close()
		if _, err := c.Write(binary.BigEndian.AppendUint16(nil, 65535)); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if _, err := c.Read(make([]byte, 1)); err == nil || time.Since(began) > 0 {
			t.Errorf("%v after %s: want the connection closed at once", err, time.Since(began))
		}
	})
}

// TestConnections: neither one pod nor all of them together have more connections than
// they may.
func TestConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer()
		l := pipes{make(chan net.Conn)}
		go s.ServeTCP("a", l)
		defer l.Close()
		open := 0
		for i := range maxConnections/connectionsAtOnce + 1 {
			a := netip.AddrFrom4([4]byte{10, 88, 2, byte(i)})
			s.Names.Add(Pod{ID: a.String(), Members: []Member{{Network: "a", Addresses: []netip.Addr{a}}}})
			mine := 0
			for range connectionsAtOnce + 1 {
				c := l.dial(a)
				defer c.Close()
				synctest.Wait()
				_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
				if _, err := c.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
					mine++
				}
			}
			if open += mine; mine > connectionsAtOnce {
				t.Errorf("pod %s has %d connections", a, mine)
			}
		}
		if open != maxConnections {
			t.Errorf("all have %d connections, want %d", open, maxConnections)
		}
		time.Sleep(2 * idleTimeout) // all have ended
		c := l.dial(webAddr)
		defer c.Close()
		must(t, writeMessage(c, ask(t, "web.", dnsmessage.TypeA, 0)))
		if _, err := readMessage(c, maxTCP); err != nil {
			t.Errorf("once they have ended: %v", err)
		}
	})
}
