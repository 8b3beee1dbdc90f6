package resolver

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net/netip"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	// tryTimeout is how long one server outside may take, forwardTimeout how long all
	// may: most clients ask again after 5 s.
	tryTimeout     = 2 * time.Second
	forwardTimeout = 4500 * time.Millisecond
	// maxAnswer is the biggest datagram that is read from outside. Of longer ones, the
	// client is told that they are cut off.
	maxAnswer = 2 * maxUDP
)

// beginForward reports whether one more question of the pod may be forwarded now.
func (s *Server) beginForward(c *client) bool {
	if !c.limit.take(&c.limit.forwarded, forwardedAtOnce) {
		return false
	}
	if !s.all.take(&s.all.forwarded, maxForwarded) {
		c.limit.give(&c.limit.forwarded)
		return false
	}
	return true
}

func (s *Server) endForward(c *client) {
	s.all.give(&s.all.forwarded)
	c.limit.give(&c.limit.forwarded)
}

// forward returns the answer of a server outside, or a failure.
func (s *Server) forward(ctx context.Context, c *client, raw []byte, tcp bool) []byte {
	q, err := parse(raw, tcp)
	question := questionOf(raw)
	if err != nil || question == nil {
		return q.reply(dnsmessage.RCodeFormatError, false, nil, "")
	}
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	servers := c.Upstreams
	if len(servers) == 0 {
		servers = s.Upstreams()
	}
	network := "udp"
	if tcp {
		network = "tcp"
	}
	for range 2 {
		for _, server := range servers {
			if ctx.Err() != nil {
				break
			}
			answer, err := s.ask(ctx, network, server, raw, question)
			if err != nil {
				continue
			}
			// As the client asked it: its ID, and the case of its letters, by which it
			// knows that nobody has guessed (0x20).
			binary.BigEndian.PutUint16(answer, q.header.ID)
			copy(answer[headerLen:], question)
			if len(answer) > q.size {
				return q.render(dnsmessage.RCodeSuccess, false, true, nil, "")
			}
			return answer
		}
	}
	return q.reply(dnsmessage.RCodeServerFailure, false, nil, "")
}

// ask asks one server, from a port of its own and with an ID that nobody knows.
func (s *Server) ask(ctx context.Context, network string, server netip.Addr, raw, question []byte) ([]byte, error) {
	conn, err := s.Dial(network, server)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	end := time.Now().Add(tryTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(end) {
		end = d
	}
	_ = conn.SetDeadline(end)
	id := uint16(rand.Uint32())
	ask := append([]byte(nil), raw...)
	binary.BigEndian.PutUint16(ask, id)
	if network == "tcp" {
		if err := writeMessage(conn, ask); err != nil {
			return nil, err
		}
		return readAnswer(func() ([]byte, error) { return readMessage(conn, maxTCP) }, id, question)
	}
	if _, err := conn.Write(ask); err != nil {
		return nil, err
	}
	buf := make([]byte, maxAnswer)
	return readAnswer(func() ([]byte, error) {
		n, err := conn.Read(buf)
		return buf[:n], err
	}, id, question)
}

// maxStrays is how many messages that answer something else are read before the server
// counts as one that does not answer.
const maxStrays = 16

func readAnswer(read func() ([]byte, error), id uint16, question []byte) ([]byte, error) {
	for range maxStrays {
		raw, err := read()
		if err != nil {
			return nil, err
		}
		if answers(raw, id, question) {
			return raw, nil
		}
	}
	return nil, errors.New("answers to other questions only")
}
