package resolver

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

var (
	webAddr  = netip.MustParseAddr("10.88.0.2")
	webAddr6 = netip.MustParseAddr("fd10:88::2")
	dbAddr   = netip.MustParseAddr("10.89.0.2")
)

// newServer has the pods web (IPv4 and IPv6) and api on the network a, db on b.
func newServer() *Server {
	n := &Names{}
	n.Serve("a", []netip.Prefix{netip.MustParsePrefix("10.88.0.0/16"), netip.MustParsePrefix("fd10:88::/64")})
	n.Serve("b", []netip.Prefix{netip.MustParsePrefix("10.89.0.0/24")})
	n.Add(Pod{ID: "web", Members: []Member{{Network: "a", Addresses: []netip.Addr{webAddr, webAddr6}, Names: []string{"web", "www"},
		Services: []Service{{Names: []string{"svc", "svc.default.svc.cluster.local"}, Addresses: []netip.Addr{netip.MustParseAddr("240.88.0.2")}}}}}})
	n.Add(Pod{ID: "api", Members: []Member{{Network: "a", Addresses: []netip.Addr{netip.MustParseAddr("10.88.0.3")}, Names: []string{"api", "www"}}}})
	n.Add(Pod{ID: "db", Members: []Member{{Network: "b", Addresses: []netip.Addr{dbAddr}, Names: []string{"db"}}}})
	return &Server{Names: n, Upstreams: func() []netip.Addr { return nil },
		Dial: func(string, netip.Addr) (net.Conn, error) { return nil, errors.New("nobody there") }}
}

func ask(t *testing.T, name string, kind dnsmessage.Type, edns uint16) []byte {
	t.Helper()
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: 0xabcd, RecursionDesired: true})
	must(t, b.StartQuestions())
	n, err := dnsmessage.NewName(name)
	must(t, err)
	must(t, b.Question(dnsmessage.Question{Name: n, Type: kind, Class: dnsmessage.ClassINET}))
	if edns > 0 {
		var h dnsmessage.ResourceHeader
		must(t, errors.Join(b.StartAdditionals(), h.SetEDNS0(int(edns), 0, false), b.OPTResource(h, dnsmessage.OPTResource{})))
	}
	raw, err := b.Finish()
	must(t, err)
	return raw
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func answerOf(t *testing.T, s *Server, c *client, raw []byte) (dnsmessage.Message, bool) {
	t.Helper()
	raw, forward := s.answer(c, raw, false)
	var m dnsmessage.Message
	if raw != nil {
		must(t, m.Unpack(raw))
	}
	return m, forward
}

func texts(m dnsmessage.Message) []string {
	var out []string
	for _, r := range m.Answers {
		switch b := r.Body.(type) {
		case *dnsmessage.AResource:
			out = append(out, netip.AddrFrom4(b.A).String())
		case *dnsmessage.AAAAResource:
			out = append(out, netip.AddrFrom16(b.AAAA).String())
		case *dnsmessage.PTRResource:
			out = append(out, b.PTR.String())
		}
	}
	slices.Sort(out)
	return out
}

// TestAnswers: names have records of each family, other types of a name are no error
// (musl takes NXDOMAIN of one type for all), and each pod knows its own networks only.
func TestAnswers(t *testing.T) {
	s := newServer()
	web, db := s.Names.client("a", webAddr), s.Names.client("b", dbAddr)
	const ok, nx = dnsmessage.RCodeSuccess, dnsmessage.RCodeNameError
	for _, c := range []struct {
		from    *client
		name    string
		kind    dnsmessage.Type
		code    dnsmessage.RCode
		records string
		forward bool
	}{
		{web, "api.", dnsmessage.TypeA, ok, "10.88.0.3", false},
		{web, "api.", dnsmessage.TypeAAAA, ok, "", false},
		{web, "api.", dnsmessage.TypeMX, ok, "", false},
		{web, "WeB.subpod.INTERNAL.", dnsmessage.TypeAAAA, ok, "fd10:88::2", false},
		{web, "www.", dnsmessage.TypeA, ok, "10.88.0.2 10.88.0.3", false},
		{web, "svc.", dnsmessage.TypeA, ok, "240.88.0.2", false},
		{web, "svc.default.svc.cluster.local.", dnsmessage.TypeA, ok, "240.88.0.2", false},
		{web, "default.svc.cluster.local.", dnsmessage.TypeA, ok, "", false},
		{web, "other.default.svc.cluster.local.", dnsmessage.TypeA, nx, "", false},
		{web, "gone.subpod.internal.", dnsmessage.TypeA, nx, "", false},
		{web, "subpod.internal.", dnsmessage.TypeA, ok, "", false},
		{web, "db.subpod.internal.", dnsmessage.TypeA, nx, "", false},
		{web, "db.", dnsmessage.TypeA, 0, "", true},
		{web, "example.org.", dnsmessage.TypeA, 0, "", true},
		{db, "web.subpod.internal.", dnsmessage.TypeA, nx, "", false},
		{db, "db.", dnsmessage.TypeA, ok, "10.89.0.2", false},
		{web, "3.0.88.10.in-addr.arpa.", dnsmessage.TypePTR, ok, "api.subpod.internal.", false},
		{web, "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.8.0.0.0.1.d.f.ip6.arpa.", dnsmessage.TypePTR, ok, "web.subpod.internal.", false},
		{web, "9.0.88.10.in-addr.arpa.", dnsmessage.TypePTR, nx, "", false},
		{web, "2.0.89.10.in-addr.arpa.", dnsmessage.TypePTR, 0, "", true},
		{web, "web.", dnsmessage.TypeAXFR, dnsmessage.RCodeRefused, "", false},
	} {
		m, forward := answerOf(t, s, c.from, ask(t, c.name, c.kind, 0))
		if forward != c.forward || m.RCode != c.code || strings.Join(texts(m), " ") != c.records {
			t.Errorf("%s %s: forward %v, %s, %q; want %v, %s, %q", c.name, c.kind, forward, m.RCode, texts(m), c.forward, c.code, c.records)
		}
		if forward || m.RCode == dnsmessage.RCodeRefused {
			continue
		}
		if m.ID != 0xabcd || !m.Response || m.Questions[0].Name.String() != c.name {
			t.Errorf("%s: ID %x, response %v, question %s: want those that were sent, letter by letter", c.name, m.ID, m.Response, m.Questions[0].Name)
		}
		if negative := len(m.Answers) == 0; negative != (len(m.Authorities) == 1) {
			t.Errorf("%s: %d answers and %d records of authority", c.name, len(m.Answers), len(m.Authorities))
		}
		for _, r := range m.Answers {
			if r.Header.TTL > 10 {
				t.Errorf("%s may be kept for %d s", c.name, r.Header.TTL)
			}
		}
	}
}

// TestGone: the names of a pod go with it, and those of others stay.
func TestGone(t *testing.T) {
	s := newServer()
	web := s.Names.client("a", webAddr)
	s.Names.Remove("api")
	s.Names.Remove("api")
	if m, _ := answerOf(t, s, web, ask(t, "www.", dnsmessage.TypeA, 0)); strings.Join(texts(m), " ") != webAddr.String() {
		t.Errorf("www is %q", texts(m))
	}
	if m, _ := answerOf(t, s, web, ask(t, "api.subpod.internal.", dnsmessage.TypeA, 0)); m.RCode != dnsmessage.RCodeNameError {
		t.Errorf("api is %q, %s", texts(m), m.RCode)
	}
	if s.Names.client("a", netip.MustParseAddr("10.88.0.3")) != nil {
		t.Error("a pod that is gone may still ask")
	}
	// An address that another pod has got meanwhile stays that pod's.
	s.Names.Add(Pod{ID: "new", Members: []Member{{Network: "a", Addresses: []netip.Addr{webAddr}, Names: []string{"new"}}}})
	s.Names.Remove("web")
	if c := s.Names.client("a", webAddr); c == nil || c.ID != "new" {
		t.Errorf("the address is of %v", c)
	}
}

// TestClosed: a pod of internal networks only learns nothing from outside.
func TestClosed(t *testing.T) {
	s := newServer()
	s.Names.Add(Pod{ID: "in", Closed: true, Members: []Member{{Network: "b", Addresses: []netip.Addr{netip.MustParseAddr("10.89.0.9")}, Names: []string{"in"}}}})
	m, forward := answerOf(t, s, s.Names.client("b", netip.MustParseAddr("10.89.0.9")), ask(t, "example.org.", dnsmessage.TypeA, 0))
	if forward || m.RCode != dnsmessage.RCodeNameError {
		t.Errorf("forward %v, %s", forward, m.RCode)
	}
}

// TestSize: an answer is never bigger than the client takes; then it says so, and all of
// it comes by TCP.
func TestSize(t *testing.T) {
	s := newServer()
	for i := range 200 {
		a := netip.AddrFrom4([4]byte{10, 88, 1, byte(i)})
		s.Names.Add(Pod{ID: a.String(), Members: []Member{{Network: "a", Addresses: []netip.Addr{a}, Names: []string{"many"}}}})
	}
	web := s.Names.client("a", webAddr)
	for edns, most := range map[uint16]int{0: 512, 100: 512, 1232: 1232, 65535: maxUDP} {
		raw, _ := s.answer(web, ask(t, "many.", dnsmessage.TypeA, edns), false)
		var m dnsmessage.Message
		must(t, m.Unpack(raw))
		if len(raw) > most || m.Truncated != (most < 200*16) || (edns > 0) != (len(m.Additionals) == 1) {
			t.Errorf("EDNS %d: %d bytes, truncated %v, %d additional records", edns, len(raw), m.Truncated, len(m.Additionals))
		}
	}
	raw, _ := s.answer(web, ask(t, "many.", dnsmessage.TypeA, 0), true)
	var m dnsmessage.Message
	if must(t, m.Unpack(raw)); len(m.Answers) != 200 || m.Truncated {
		t.Errorf("by TCP: %d answers, truncated %v", len(m.Answers), m.Truncated)
	}
}

// TestBadQueries: what is no query is not answered, so that two servers cannot be made to
// talk to each other; what is a bad one gets an error.
func TestBadQueries(t *testing.T) {
	s := newServer()
	web := s.Names.client("a", webAddr)
	good := ask(t, "web.", dnsmessage.TypeA, 0)
	change := func(f func(b []byte) []byte) []byte { return f(bytes.Clone(good)) }
	for name, c := range map[string]struct {
		raw  []byte
		code int // -1: no answer
	}{
		"empty":         {nil, -1},
		"short":         {good[:11], -1},
		"an answer":     {change(func(b []byte) []byte { b[2] |= 0x80; return b }), -1},
		"cut off":       {good[:len(good)-3], int(dnsmessage.RCodeFormatError)},
		"no question":   {change(func(b []byte) []byte { b[5] = 0; return b[:12] }), int(dnsmessage.RCodeFormatError)},
		"two questions": {change(func(b []byte) []byte { b[5] = 2; return append(b, b[12:]...) }), int(dnsmessage.RCodeFormatError)},
		"a status":      {change(func(b []byte) []byte { b[2] |= 2 << 3; return b }), int(dnsmessage.RCodeNotImplemented)},
		"chaos":         {change(func(b []byte) []byte { b[len(b)-1] = 3; return b }), int(dnsmessage.RCodeRefused)},
	} {
		raw, forward := s.answer(web, c.raw, false)
		if forward || (raw == nil) != (c.code < 0) || raw != nil && int(raw[3]&0xf) != c.code {
			t.Errorf("%s: forward %v, answer %x; want code %d", name, forward, raw, c.code)
		}
	}
}

// upstream is a name server outside that answers as f says.
func upstream(t *testing.T, f func(q []byte) [][]byte) netip.AddrPort {
	t.Helper()
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	go func() {
		buf := make([]byte, 65535)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			for _, a := range f(bytes.Clone(buf[:n])) {
				_, _ = conn.WriteToUDPAddrPort(a, from)
			}
		}
	}()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

// TestForward: the client gets the answer to its own question, in its own letters, and
// no other, whoever sends it.
func TestForward(t *testing.T) {
	s := newServer()
	real := upstream(t, func(q []byte) [][]byte {
		right := append(bytes.Clone(q[:headerLen]), lower(q[headerLen:])...)
		right[2] |= 0x80
		wrongID, wrongName := bytes.Clone(right), bytes.Clone(right)
		wrongID[0] ^= 0xff
		wrongName[13] = 'x'
		for _, w := range [][]byte{wrongID, wrongName} {
			w[3] = 5 // REFUSED
		}
		return [][]byte{wrongID, wrongName, q, right}
	})
	s.Upstreams = func() []netip.Addr { return []netip.Addr{netip.MustParseAddr("192.0.2.1"), real.Addr()} }
	asked := 0
	s.Dial = func(network string, server netip.Addr) (net.Conn, error) {
		if asked++; server != real.Addr() {
			return nil, errors.New("no route")
		}
		return net.Dial(network, real.String())
	}
	raw := ask(t, "ExAmPle.org.", dnsmessage.TypeA, 0)
	got := s.forward(t.Context(), s.Names.client("a", webAddr), raw, false)
	if !bytes.Equal(got[:2], raw[:2]) || !bytes.Equal(questionOf(got), questionOf(raw)) || got[3]&0xf != 0 {
		t.Errorf("asked %x, answered %x", raw, got)
	}
	if asked != 2 {
		t.Errorf("%d servers were asked, want 2", asked)
	}
}

// TestForwardFails: without an answer there is a failure, not silence.
func TestForwardFails(t *testing.T) {
	s := newServer()
	s.Upstreams = func() []netip.Addr { return []netip.Addr{netip.MustParseAddr("192.0.2.1")} }
	got := s.forward(t.Context(), s.Names.client("a", webAddr), ask(t, "example.org.", dnsmessage.TypeA, 0), false)
	if len(got) < headerLen || dnsmessage.RCode(got[3]&0xf) != dnsmessage.RCodeServerFailure {
		t.Errorf("%x", got)
	}
}

// TestServe: by UDP and TCP on real sockets; who is no pod of the network gets nothing.
func TestServe(t *testing.T) {
	s := newServer()
	local := netip.MustParseAddr("127.0.0.1")
	udp, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	must(t, err)
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	go s.ServeUDP("a", udp)
	go s.ServeTCP("a", tcp)
	t.Cleanup(func() { udp.Close(); tcp.Close() })
	exchange := func(network, addr string, patience time.Duration) ([]byte, error) {
		c, err := net.Dial(network, addr)
		must(t, err)
		defer c.Close()
		raw := ask(t, "web.", dnsmessage.TypeA, 0)
		if network == "tcp" {
			if err := writeMessage(c, raw); err != nil {
				return nil, err
			}
			return readMessage(c, maxTCP)
		}
		_ = c.SetDeadline(time.Now().Add(patience))
		if _, err := c.Write(raw); err != nil {
			return nil, err
		}
		buf := make([]byte, 4096)
		n, err := c.Read(buf)
		return buf[:n], err
	}
	for _, at := range []net.Addr{udp.LocalAddr(), tcp.Addr()} {
		if got, err := exchange(at.Network(), at.String(), 300*time.Millisecond); err == nil {
			t.Errorf("%s: a stranger is answered: %x", at.Network(), got)
		}
	}
	s.Names.Add(Pod{ID: "here", Members: []Member{{Network: "a", Addresses: []netip.Addr{local}, Names: []string{"here"}}}})
	for _, at := range []net.Addr{udp.LocalAddr(), tcp.Addr()} {
		got, err := exchange(at.Network(), at.String(), time.Minute)
		var m dnsmessage.Message
		if err == nil {
			err = m.Unpack(got)
		}
		if err != nil || strings.Join(texts(m), " ") != webAddr.String() {
			t.Errorf("%s: %v, %q", at.Network(), err, texts(m))
		}
	}
}

// TestLimits: one pod cannot keep the server from the others.
func TestLimits(t *testing.T) {
	var l limiter
	now := time.Now()
	n := 0
	for ; l.question(now); n++ {
		if n > 2*questionsAtOnce {
			t.Fatal("no bound")
		}
	}
	if l.question(now.Add(time.Microsecond)) || !l.question(now.Add(10*time.Millisecond)) {
		t.Errorf("after %d questions: too early or too late", n)
	}
	s := newServer()
	web := s.Names.client("a", webAddr)
	for range forwardedAtOnce {
		if !s.beginForward(web) {
			t.Fatal("fewer than may be")
		}
	}
	if s.beginForward(web) {
		t.Error("more than may be")
	}
	if other := s.Names.client("b", dbAddr); !s.beginForward(other) {
		t.Error("another pod has to wait")
	}
	s.endForward(web)
	if !s.beginForward(web) {
		t.Error("what has ended still counts")
	}
}

// FuzzAnswer: whatever a pod sends, there is no panic, and an answer is one: of the size
// that the client takes, with its ID.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte{0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 3, 'w', 'e', 'b', 0, 0, 1, 0, 1})
	f.Add([]byte{0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1, 3, 'w', 'w', 'W', 0, 0, 255, 0, 1, 0, 0, 41, 2, 0, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1})
	s := newServer()
	web := s.Names.client("a", webAddr)
	f.Fuzz(func(t *testing.T, raw []byte) {
		got, forward := s.answer(web, raw, false)
		if forward {
			got = s.forward(t.Context(), web, raw, false)
		}
		if got == nil {
			return
		}
		var p dnsmessage.Parser
		h, err := p.Start(got)
		if err == nil {
			_, err = p.AllQuestions()
		}
		if err != nil || !h.Response || h.ID != binary.BigEndian.Uint16(raw) || len(got) > maxUDP {
			t.Errorf("%x is answered with %x: %v", raw, got, err)
		}
	})
}

// FuzzUpstream: whatever a server outside sends is either the answer or nothing.
func FuzzUpstream(f *testing.F) {
	question := []byte{3, 'w', 'e', 'b', 0, 0, 1, 0, 1}
	f.Add(append([]byte{0xab, 0xcd, 0x81, 0, 0, 1, 0, 0, 0, 0, 0, 0}, question...))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if answers(raw, 0xabcd, question) && !bytes.EqualFold(raw[headerLen:headerLen+len(question)], question) {
			t.Errorf("%x answers %x", raw, question)
		}
	})
}
