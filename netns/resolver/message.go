package resolver

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	// ttl and negativeTTL are how long an answer of ours may be kept, in seconds: pods
	// come and go.
	ttl         = 5
	negativeTTL = 1
	// maxUDP is the biggest answer by UDP, whatever the client says that it takes.
	maxUDP = 4096
	minUDP = 512 // RFC 1035, 4.2.1
	maxTCP = 65535
	// maxQuery is the longest query that is read: one question with its options.
	maxQuery = maxUDP

	headerLen = 12
	// maxQuestion is the longest question: name, type and class.
	maxQuestion = 255 + 4
)

// query is a question of a pod.
type query struct {
	raw      []byte
	header   dnsmessage.Header
	question dnsmessage.Question
	edns     bool
	badVers  bool // a version of EDNS that does not exist yet
	size     int  // the biggest answer that the client takes
}

// errNoQuery says that a message is not to be answered at all.
var errNoQuery = errors.New("no query")

// parse reads a query. With an error other than errNoQuery the client gets a format
// error.
func parse(raw []byte, tcp bool) (query, error) {
	q := query{raw: raw, size: minUDP}
	var p dnsmessage.Parser
	var err error
	if q.header, err = p.Start(raw); err != nil || q.header.Response {
		return q, errNoQuery
	}
	if q.question, err = p.Question(); err != nil {
		return q, err
	}
	if _, err = p.Question(); !errors.Is(err, dnsmessage.ErrSectionDone) {
		return q, errors.New("more than one question")
	}
	if err := errors.Join(p.SkipAllAnswers(), p.SkipAllAuthorities()); err != nil {
		return q, err
	}
	for {
		h, err := p.AdditionalHeader()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			break
		}
		if err != nil {
			return q, err
		}
		if h.Type == dnsmessage.TypeOPT {
			if q.edns {
				return q, errors.New("two OPT records") // RFC 6891, 6.1.1
			}
			q.edns, q.badVers = true, byte(h.TTL>>16) != 0
			q.size = min(max(int(h.Class), minUDP), maxUDP)
		}
		if err := p.SkipAdditional(); err != nil {
			return q, err
		}
	}
	if tcp {
		q.size = maxTCP
	}
	return q, nil
}

// reply renders an answer with the records, or one that is cut off where the client does
// not take them all (RFC 2181, 9).
func (q query) reply(code dnsmessage.RCode, authoritative bool, addrs []netip.Addr, pointer string) []byte {
	out := q.render(code, authoritative, false, addrs, pointer)
	if len(out) > q.size {
		return q.render(code, authoritative, true, nil, "")
	}
	return out
}

func (q query) render(code dnsmessage.RCode, authoritative, cut bool, addrs []netip.Addr, pointer string) []byte {
	h := dnsmessage.Header{ID: q.header.ID, Response: true, OpCode: q.header.OpCode, Authoritative: authoritative, Truncated: cut,
		RecursionDesired: q.header.RecursionDesired, RecursionAvailable: true, RCode: code & 0xf}
	b := dnsmessage.NewBuilder(make([]byte, 0, minUDP), h)
	b.EnableCompression()
	empty := len(addrs) == 0 && pointer == ""
	var errs []error
	if q.question.Name.Length > 0 {
		errs = append(errs, b.StartQuestions(), b.Question(q.question))
	}
	errs = append(errs, b.StartAnswers())
	rr := dnsmessage.ResourceHeader{Name: q.question.Name, Class: dnsmessage.ClassINET, TTL: ttl}
	for _, a := range addrs {
		if a.Is4() {
			errs = append(errs, b.AResource(rr, dnsmessage.AResource{A: a.As4()}))
		} else {
			errs = append(errs, b.AAAAResource(rr, dnsmessage.AAAAResource{AAAA: a.As16()}))
		}
	}
	if pointer != "" {
		name, err := dnsmessage.NewName(pointer + "." + Domain + ".")
		errs = append(errs, err, b.PTRResource(rr, dnsmessage.PTRResource{PTR: name}))
	}
	if authoritative && empty && !cut {
		errs = append(errs, b.StartAuthorities(), startOfAuthority(&b))
	}
	if q.edns {
		var opt dnsmessage.ResourceHeader
		errs = append(errs, opt.SetEDNS0(maxUDP, code, false), b.StartAdditionals(), b.OPTResource(opt, dnsmessage.OPTResource{}))
	}
	out, err := b.Finish()
	if err = errors.Join(append(errs, err)...); err != nil && code != dnsmessage.RCodeServerFailure {
		return q.render(dnsmessage.RCodeServerFailure, false, false, nil, "")
	}
	return out
}

// startOfAuthority tells clients for how long to keep an answer without records (RFC
// 2308, 5).
func startOfAuthority(b *dnsmessage.Builder) error {
	name := dnsmessage.MustNewName(Domain + ".")
	return b.SOAResource(dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET, TTL: negativeTTL}, dnsmessage.SOAResource{
		NS: name, MBox: name, Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, MinTTL: negativeTTL})
}

// questionOf returns the question of a message as it is on the wire; nil where it is not
// plain.
func questionOf(raw []byte) []byte {
	if len(raw) < headerLen || binary.BigEndian.Uint16(raw[4:]) != 1 {
		return nil
	}
	for i := headerLen; i < len(raw) && i-headerLen < maxQuestion; {
		switch n := int(raw[i]); {
		case n == 0 && i+5 <= len(raw):
			return raw[headerLen : i+5]
		case n == 0 || n > 63: // cut off, or a pointer
			return nil
		default:
			i += 1 + n
		}
	}
	return nil
}

// answers reports whether raw is the answer to what was asked with an ID. The upstream
// may have changed the case of letters.
func answers(raw []byte, id uint16, question []byte) bool {
	if len(raw) < headerLen || binary.BigEndian.Uint16(raw) != id || raw[2]&0x80 == 0 {
		return false
	}
	got := questionOf(raw)
	return got != nil && bytes.Equal(lower(got), lower(question))
}

// lower is bytes.ToLower for letters of ASCII alone (RFC 4343). The lengths of labels
// are no letters, and the type and class after the name are left alone.
func lower(question []byte) []byte {
	out := bytes.Clone(question)
	for i := range out[:len(out)-4] {
		if 'A' <= out[i] && out[i] <= 'Z' {
			out[i] += 'a' - 'A'
		}
	}
	return out
}

// address returns the address that a name below in-addr.arpa or ip6.arpa stands for.
func address(name string) (netip.Addr, bool) {
	name = strings.TrimSuffix(strings.ToLower(name), ".")
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		parts := strings.Split(rest, ".")
		var b [4]byte
		if len(parts) != len(b) {
			return netip.Addr{}, false
		}
		for i, p := range parts {
			n, err := strconv.ParseUint(p, 10, 8)
			if err != nil {
				return netip.Addr{}, false
			}
			b[len(b)-1-i] = byte(n)
		}
		return netip.AddrFrom4(b), true
	}
	rest, ok := strings.CutSuffix(name, ".ip6.arpa")
	if !ok || len(rest) != 63 {
		return netip.Addr{}, false
	}
	var b [16]byte
	for i := range 32 {
		n, err := strconv.ParseUint(rest[2*i:2*i+1], 16, 4)
		if err != nil || i < 31 && rest[2*i+1] != '.' {
			return netip.Addr{}, false
		}
		at := 31 - i
		b[at/2] |= byte(n) << (4 * (1 - at%2))
	}
	return netip.AddrFrom16(b), true
}
