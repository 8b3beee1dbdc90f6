package bridge

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// rawSocket sends rtnetlink requests that the netlink library cannot build, and those of
// a pod that is set up: several by one call, without 64 KiB of room for each answer.
type rawSocket struct {
	mu  sync.Mutex // held from a call to its answers, which the kernel has by then
	fd  int
	seq uint32
}

// openRaw opens a socket in the calling thread's network namespace.
func openRaw() (*rawSocket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	return &rawSocket{fd: fd}, nil
}

func (r *rawSocket) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	unix.Close(r.fd)
	r.fd = -1
}

// request is one message.
type request struct {
	*nl.NetlinkRequest
	what   string           // it does, for errors
	passes func(error) bool // reports an error that is none; nil: every error is one
	err    error            // the kernel's answer, after send
}

func newRequest(what string, kind, flags int, data ...nl.NetlinkRequestData) *request {
	q := &request{what: what, NetlinkRequest: nl.NewNetlinkRequest(kind, flags)}
	for _, d := range data {
		q.AddData(d)
	}
	return q
}

// alsoPass has errors pass that f passes.
func (q *request) alsoPass(f func(error) bool) {
	before := q.passes
	q.passes = func(err error) bool { return f(err) || before != nil && before(err) }
}

// maxAnswer is more than a message about a link has, in bytes. The rest of a longer one
// would be cut off.
const maxAnswer = 16 << 10

// maxRequests are sent by one call: as many as the answers of fit into the socket if all
// of them fail.
const maxRequests = 64

// send sends requests, maxRequests by one call. The kernel works them off one after the
// other, also after one that fails, and answers those that fail and the last one. The
// first error that does not pass is returned.
func (r *rawSocket) send(requests ...*request) error {
	for some := range slices.Chunk(requests, maxRequests) {
		if _, err := r.exchange(some); err != nil {
			return err
		}
	}
	for _, q := range requests {
		if q.err != nil && (q.passes == nil || !q.passes(q.err)) {
			return fmt.Errorf("%s: %w", q.what, q.err)
		}
	}
	return nil
}

// exchange sends requests and returns the last message that is no error.
func (r *rawSocket) exchange(requests []*request) (data []byte, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []byte
	bySeq := make(map[uint32]*request, len(requests))
	for _, q := range requests {
		r.seq++
		q.Seq, q.err, bySeq[r.seq] = r.seq, nil, q
		if len(bySeq) == len(requests) {
			q.Flags |= unix.NLM_F_ACK
		}
		out = append(out, q.Serialize()...) // its attributes fill it up to a multiple of 4 bytes
	}
	if err := unix.Sendto(r.fd, out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("send to the kernel: %w", err)
	}
	answer := make([]byte, maxAnswer)
	for {
		n, err := unix.Read(r.fd, answer)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			r.drain()
			return nil, fmt.Errorf("read the kernel's answer: %w", err)
		}
		messages, err := syscall.ParseNetlinkMessage(answer[:n])
		if err != nil {
			return nil, fmt.Errorf("read the kernel's answer: %w", err)
		}
		for _, m := range messages {
			q := bySeq[m.Header.Seq]
			if q == nil { // of a call that failed half-way
				continue
			}
			if m.Header.Type != unix.NLMSG_ERROR {
				data = append([]byte(nil), m.Data...)
				continue
			}
			if code := int32(nl.NativeEndian().Uint32(m.Data)); code != 0 {
				q.err = syscall.Errno(-code)
			}
			if m.Header.Seq == r.seq {
				return data, nil
			}
		}
	}
}

// drain drops what there is to read. Once an answer did not fit (ENOBUFS), the kernel drops
// all further ones until the socket is empty, and says so no more.
func (r *rawSocket) drain() {
	some := make([]byte, 1)
	for {
		_, _, err := unix.Recvfrom(r.fd, some, unix.MSG_DONTWAIT)
		if err != nil && err != unix.EINTR && err != unix.ENOBUFS {
			return
		}
	}
}

// link returns an interface by its name, or by its index where that is not 0.
func (r *rawSocket) link(name string, index int) (netlink.Link, error) {
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	q := newRequest("look at interface "+name, unix.RTM_GETLINK, 0, msg)
	if index == 0 {
		q.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	}
	data, err := r.exchange([]*request{q})
	if err == nil {
		err = q.err
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", q.what, err)
	}
	return netlink.LinkDeserialize(nil, data)
}

// upRequest brings an interface up.
func upRequest(index int) *request {
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index, msg.Flags, msg.Change = int32(index), unix.IFF_UP, unix.IFF_UP
	return newRequest("bring it up", unix.RTM_NEWLINK, 0, msg)
}

// addrGenRequest says how the kernel makes an interface's IPv6 link-local address.
func addrGenRequest(index int, mode byte) *request {
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	spec.AddRtAttr(unix.AF_INET6, nil).AddRtAttr(unix.IFLA_INET6_ADDR_GEN_MODE, []byte{mode})
	return newRequest("keep the kernel from making addresses", unix.RTM_SETLINK, 0, msg, spec)
}

// addressRequest gives an interface an address, IPv6 ones without a look for other owners.
func addressRequest(index int, p netip.Prefix) *request {
	a := p.Addr()
	msg := nl.NewIfAddrmsg(familyOf(a))
	msg.Index, msg.Prefixlen = uint32(index), uint8(p.Bits())
	if a.Is6() {
		msg.Flags = unix.IFA_F_NODAD
	}
	q := newRequest(fmt.Sprintf("add address %s", p), unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, msg,
		nl.NewRtAttr(unix.IFA_LOCAL, a.AsSlice()), nl.NewRtAttr(unix.IFA_ADDRESS, a.AsSlice()))
	if a.Is4() && p.Bits() < 31 { // RFC 3021
		q.AddData(nl.NewRtAttr(unix.IFA_BROADCAST, lastOf(p).AsSlice()))
	}
	return q
}

// routeRequest makes the default route by gw, with a TCP congestion control unless it is
// "".
func routeRequest(index int, gw netip.Addr, congestion string) *request {
	msg := nl.NewRtMsg()
	msg.Family = uint8(familyOf(gw))
	q := newRequest(fmt.Sprintf("add default route via %s", gw), unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, msg,
		nl.NewRtAttr(unix.RTA_GATEWAY, gw.AsSlice()), nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(index))))
	if congestion != "" {
		metrics := nl.NewRtAttr(unix.RTA_METRICS, nil)
		metrics.AddRtAttr(unix.RTAX_CC_ALGO, nl.ZeroTerminated(congestion))
		q.AddData(metrics)
	}
	return q
}

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
