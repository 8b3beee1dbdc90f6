// Package resolver is the name server of pods: it answers questions about the names of
// pods in the same network, and has all others answered by servers outside.
//
// Whoever asks is known by the address that the question comes from: on the pods'
// networks nobody can send from another's. Others get no answer. All that a pod can make
// it do is bounded.
package resolver

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	// idleTimeout ends a connection on which nothing comes, or nothing is taken.
	idleTimeout = 10 * time.Second
	// acceptPause is the pause after a connection could not be accepted.
	acceptPause = 100 * time.Millisecond
	// maxForwarded bounds the questions that are being forwarded for all pods,
	// maxConnections their connections.
	maxForwarded   = 512
	maxConnections = 1024
)

// Server answers questions. All fields are needed.
type Server struct {
	Names *Names
	// Dial makes a socket that is connected to port 53 of a server outside, "udp" or
	// "tcp".
	Dial func(network string, server netip.Addr) (net.Conn, error)
	// Upstreams returns the servers outside, in the order in which they are asked.
	Upstreams func() []netip.Addr

	all limiter // what all pods have together
}

// ServeUDP answers questions that come by the socket, which is on the network, until it
// is closed.
func (s *Server) ServeUDP(network string, conn *net.UDPConn) {
	buf := make([]byte, maxUDP)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(time.Millisecond) // an ICMP message about an answer of ours, or no memory
			continue
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		c := s.Names.client(network, from.Addr())
		if c == nil || !c.limit.question(time.Now()) {
			continue
		}
		send := func(answer []byte) { _, _ = conn.WriteToUDPAddrPort(answer, from) }
		answer, forward := s.answer(c, buf[:n], false)
		if !forward {
			if answer != nil {
				send(answer)
			}
			continue
		}
		raw := append([]byte(nil), buf[:n]...)
		if s.beginForward(c) {
			go func() {
				defer s.endForward(c)
				send(s.forward(context.Background(), c, raw, false))
			}()
		} // else the client asks again
	}
}

// ServeTCP answers questions on the listener's connections until it is closed.
func (s *Server) ServeTCP(network string, l net.Listener) {
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(acceptPause)
			continue
		}
		c := s.Names.client(network, addrOf(conn))
		if c == nil || !s.beginConn(c) {
			conn.Close()
			continue
		}
		go func() {
			defer s.endConn(c)
			defer conn.Close()
			s.serveConn(c, conn)
		}()
	}
}

// beginConn reports whether the pod may have one more connection now.
func (s *Server) beginConn(c *client) bool {
	if !c.limit.take(&c.limit.connections, connectionsAtOnce) {
		return false
	}
	if !s.all.take(&s.all.connections, maxConnections) {
		c.limit.give(&c.limit.connections)
		return false
	}
	return true
}

func (s *Server) endConn(c *client) {
	s.all.give(&s.all.connections)
	c.limit.give(&c.limit.connections)
}

func addrOf(conn net.Conn) netip.Addr {
	a, ok := conn.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	return a.AddrPort().Addr().Unmap()
}

// serveConn answers the questions of one connection, one after the other.
func (s *Server) serveConn(c *client, conn net.Conn) {
	for {
		_ = conn.SetReadDeadline(time.Now().Add(idleTimeout))
		raw, err := readMessage(conn, maxQuery)
		if err != nil || !c.limit.question(time.Now()) {
			return
		}
		answer, forward := s.answer(c, raw, true)
		if forward {
			if !s.beginForward(c) {
				return
			}
			answer = s.forward(context.Background(), c, raw, true)
			s.endForward(c)
		}
		_ = conn.SetWriteDeadline(time.Now().Add(idleTimeout))
		if answer == nil || writeMessage(conn, answer) != nil {
			return
		}
	}
}

// errTooLong says that a message is longer than the reader takes.
var errTooLong = errors.New("message is too long")

// readMessage reads a message with its length before it (RFC 1035, 4.2.2). errTooLong.
func readMessage(r io.Reader, most int) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(size[:]))
	if n > most {
		return nil, errTooLong
	}
	raw := make([]byte, n)
	_, err := io.ReadFull(r, raw)
	return raw, err
}

func writeMessage(w io.Writer, raw []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(raw))), raw...))
	return err
}

// answer returns the answer to a question, nil where there is to be none; or forward,
// where others have it.
func (s *Server) answer(c *client, raw []byte, tcp bool) (answer []byte, forward bool) {
	q, err := parse(raw, tcp)
	switch {
	case errors.Is(err, errNoQuery):
		return nil, false
	case err != nil:
		return q.reply(dnsmessage.RCodeFormatError, false, nil, ""), false
	case q.header.OpCode != 0:
		return q.reply(dnsmessage.RCodeNotImplemented, false, nil, ""), false
	case q.badVers:
		return q.reply(16, false, nil, ""), false // BADVERS, RFC 6891
	case q.question.Class != dnsmessage.ClassINET:
		return q.reply(dnsmessage.RCodeRefused, false, nil, ""), false
	}
	switch q.question.Type {
	case 251, dnsmessage.TypeAXFR: // IXFR
		return q.reply(dnsmessage.RCodeRefused, false, nil, ""), false
	}
	name := strings.TrimSuffix(strings.ToLower(q.question.Name.String()), ".")
	if addr, ok := address(name); ok {
		if owner, ours := s.Names.owner(c, addr); ours {
			switch {
			case owner == "":
				return q.reply(dnsmessage.RCodeNameError, true, nil, ""), false
			case q.question.Type != dnsmessage.TypePTR && q.question.Type != dnsmessage.TypeALL:
				owner = ""
			}
			return q.reply(dnsmessage.RCodeSuccess, true, nil, owner), false
		}
	}
	if addrs, exists := s.Names.lookup(c, name); exists || name == Domain || name == ClusterDomain {
		return q.reply(dnsmessage.RCodeSuccess, true, ofType(q.question.Type, addrs), ""), false
	}
	if c.Closed || below(name, Domain) || below(name, ClusterDomain) {
		return q.reply(dnsmessage.RCodeNameError, true, nil, ""), false
	}
	return nil, true
}

// ofType returns the addresses that a question of the type asks for.
func ofType(t dnsmessage.Type, addrs []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, a := range addrs {
		if t == dnsmessage.TypeALL || t == dnsmessage.TypeA && a.Is4() || t == dnsmessage.TypeAAAA && a.Is6() {
			out = append(out, a)
		}
	}
	return out
}
