package egress

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/seccompnotify"
)

const (
	// goneInterval is how often it is looked whether a caller that is waited for has been interrupted.
	goneInterval = 250 * time.Millisecond
	// portTries is how many ports of the host are tried for one connection.
	portTries = 16
)

// States of TCP (net/tcp_states.h). A socket in tcpClose is not connected, nor on the way to it.
const (
	tcpEstablished = 1
	tcpSynSent     = 2
	tcpClose       = 7
)

// attempt is one connect(2) of a caller.
type attempt struct {
	g      *guard
	id     uint64
	caller caller
	to     netip.AddrPort
	// theirs is a copy of the caller's socket, domain its family, flags those of the file.
	theirs, domain, flags int
	cloexec               bool
}

// answer decides what becomes of a call.
func (g *guard) answer(n seccompnotify.Notification) {
	result := g.try(n)
	g.m.count(result)
	if result != switched && result != failed {
		_ = g.listener.Continue(n.ID) // ErrGone: there is nobody to tell
	}
}

// try answers a call; what it has not answered is to be continued.
func (g *guard) try(n seccompnotify.Notification) outcome {
	if n.Number != unix.SYS_CONNECT && n.Number != unix.SYS_LISTEN || n.Arch != auditArch {
		return other
	}
	c := caller{tid: int(n.PID), fd: int(int32(n.Args[0]))}
	var to netip.AddrPort
	var err error
	if n.Number == unix.SYS_CONNECT {
		if to, err = readAddress(c.tid, n.Args[1], n.Args[2]); err != nil {
			return other
		}
	}
	fd, err := c.socket()
	if err != nil {
		return other
	}
	defer unix.Close(fd)
	// What was read was the caller's, if it still waits.
	if !g.listener.Valid(n.ID) {
		return interrupted
	}
	a := &attempt{g: g, id: n.ID, caller: c, to: to, theirs: fd}
	if !a.isTCP() || n.Number == unix.SYS_CONNECT && !a.fits() {
		return other
	}
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	switch {
	case err != nil:
		return other
	case n.Number == unix.SYS_LISTEN:
		return a.listens(cookie)
	case cookie == g.m.host:
		return a.again()
	case !g.isPods(cookie):
		return other // of a namespace that the container has made
	}
	return a.first()
}

// listens is the listen(2) of a socket: the host's are for connections of the pod's.
func (a *attempt) listens(cookie uint64) outcome {
	if cookie == a.g.m.host {
		return a.fail(unix.EOPNOTSUPP)
	}
	return other
}

// fits reports whether the address is of the socket's family.
func (a *attempt) fits() bool {
	return (a.domain == unix.AF_INET) == a.to.Addr().Is4() && a.to.Port() != 0
}

// isTCP reports whether the socket is one of TCP.
func (a *attempt) isTCP() bool {
	var err error
	if a.domain, err = unix.GetsockoptInt(a.theirs, unix.SOL_SOCKET, unix.SO_DOMAIN); err != nil {
		return false
	}
	protocol, err := unix.GetsockoptInt(a.theirs, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil || protocol != unix.IPPROTO_TCP {
		return false
	}
	kind, err := unix.GetsockoptInt(a.theirs, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil || kind != unix.SOCK_STREAM {
		return false
	}
	a.flags, err = unix.FcntlInt(uintptr(a.theirs), unix.F_GETFL, 0)
	return err == nil && (a.domain == unix.AF_INET || a.domain == unix.AF_INET6)
}

// first is the connect(2) of a socket of the pod's.
func (a *attempt) first() outcome {
	if a.g.m.places.local(a.to.Addr()) {
		return local
	}
	if reason := a.bound(); reason != "" {
		return reason
	}
	return a.replace()
}

// bound returns what keeps a socket in the network that it is in; "" for nothing.
func (a *attempt) bound() outcome {
	if state(a.theirs) != tcpClose {
		return busy
	}
	own, err := unix.Getsockname(a.theirs)
	if err != nil {
		return other
	}
	switch s := own.(type) {
	case *unix.SockaddrInet4:
		if s.Port != 0 {
			return bound
		}
	case *unix.SockaddrInet6:
		if s.Port != 0 {
			return bound
		}
	}
	mark, _ := unix.GetsockoptInt(a.theirs, unix.SOL_SOCKET, unix.SO_MARK)
	device, _ := unix.GetsockoptString(a.theirs, unix.SOL_SOCKET, unix.SO_BINDTODEVICE)
	if mark != 0 || device != "" || a.flags&unix.O_ASYNC != 0 {
		return bound
	}
	return ""
}

// again is the connect(2) of a socket that is the host's already.
func (a *attempt) again() (result outcome) {
	if cookie, err := unix.GetsockoptUint64(a.theirs, unix.SOL_SOCKET, unix.SO_COOKIE); err == nil && a.g.deliveries.lost(cookie) {
		return a.settled()
	}
	info, err := unix.GetsockoptTCPInfo(a.theirs, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil || info.State != tcpClose {
		return other // the kernel knows how far its connection is
	}
	if info.Segs_out > 0 { // a connection that failed: the kernel would return its error first
		if value, err := unix.GetsockoptInt(a.theirs, unix.SOL_SOCKET, unix.SO_ERROR); err == nil && value != 0 {
			return a.fail(unix.Errno(value))
		}
	}
	if a.g.m.places.local(a.to.Addr()) {
		result = a.goHome()
	} else {
		result = a.replace()
	}
	if result == switched || result == failed || result == local || result == interrupted {
		return result
	}
	// It would be the host's connection to what the pod's network is to have.
	return a.fail(unix.EADDRNOTAVAIL)
}

// settled answers the call of a caller that a signal has interrupted after its socket was replaced:
// it is the same call, begun again.
func (a *attempt) settled() outcome {
	switch state(a.theirs) {
	case tcpEstablished:
		_ = a.g.listener.Return(a.id, 0)
		return switched
	case tcpSynSent:
		_ = a.g.listener.Return(a.id, unix.EINPROGRESS)
		return switched
	}
	return other
}

// goHome gives a caller a socket of the pod's, for an address there.
func (a *attempt) goHome() outcome {
	fd, err := a.g.m.socketIn(a.g.pod, a.domain)
	if err != nil {
		return other
	}
	defer unix.Close(fd)
	carryOptions(a.domain, a.theirs, fd)
	if !a.look() || a.deliver(fd) != nil {
		return other
	}
	return local // the kernel connects it
}

// replace connects a socket of the host's and gives it to the caller.
func (a *attempt) replace() outcome {
	var stat unix.Stat_t
	if err := unix.Fstat(a.theirs, &stat); err != nil {
		return other
	}
	switch used, err := a.caller.use(stat.Ino); {
	case err != nil:
		return other
	case used != usedOnce:
		return outcome(used)
	}
	if !a.look() {
		return other
	}
	index, err := a.g.m.ways.to(a.to.Addr())
	if errors.Is(err, errOwn) {
		return hosts
	}
	if err != nil {
		return a.fail(err)
	}
	fd, err := a.connect(index)
	if errors.Is(err, errNoPort) {
		a.g.m.Log.Debug("a connection stays on the uplink", "pod", a.g.pod, "error", err)
		return ports
	}
	if fd < 0 {
		return a.fail(err)
	}
	defer unix.Close(fd)
	if errors.Is(err, unix.EINPROGRESS) && a.flags&unix.O_NONBLOCK == 0 {
		return a.block(fd)
	}
	// When a signal comes before the answer, the caller has the socket, and asks again.
	told := a.g.deliveries.begin(fd)
	if a.deliver(fd) != nil {
		told(true)
		return interrupted
	}
	errno, _ := err.(unix.Errno)
	told(a.g.listener.Return(a.id, errno) == nil)
	return switched
}

// look reads what is needed to replace the caller's descriptor.
func (a *attempt) look() bool {
	var err error
	a.cloexec, err = a.caller.closeOnExec()
	return err == nil
}

// fail has the call fail as it did for the server. The caller keeps its socket.
func (a *attempt) fail(err error) outcome {
	var errno unix.Errno
	if !errors.As(err, &errno) {
		return interrupted
	}
	_ = a.g.listener.Return(a.id, errno)
	return failed
}

// errNoPort is returned when no port of the host was free for the connection.
var errNoPort = errors.New("no free port")

// connect returns a welded socket that is connected, or on the way to it (EINPROGRESS).
func (a *attempt) connect(index int) (int, error) {
	for range portTries {
		fd, err := unix.Socket(a.domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_TCP)
		if err != nil { // too many files, most likely: the uplink may have room
			return -1, fmt.Errorf("%w: %w", errNoPort, err)
		}
		carryOptions(a.domain, a.theirs, fd)
		if err := weld(fd, a.domain, index); err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("%w: %w", errNoPort, err)
		}
		err = unix.Connect(fd, a.sockaddr())
		if err == nil || errors.Is(err, unix.EINPROGRESS) {
			return fd, err
		}
		unix.Close(fd)
		if !errors.Is(err, unix.EADDRNOTAVAIL) {
			return -1, err
		}
	}
	return -1, errNoPort
}

// sockaddr is the address in the form for the socket's family.
func (a *attempt) sockaddr() unix.Sockaddr {
	if a.domain == unix.AF_INET {
		return &unix.SockaddrInet4{Addr: a.to.Addr().As4(), Port: int(a.to.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.to.Addr().As16(), Port: int(a.to.Port())}
}

// block gives a caller whose socket blocks one that is on the way to its connection, and has the
// kernel go on with the call, which waits for that. So what ends the call, or closes the descriptor
// meanwhile, has its usual effect, whether there is a server or not.
func (a *attempt) block(fd int) outcome {
	tv, err := unix.GetsockoptTimeval(a.theirs, unix.SOL_SOCKET, unix.SO_SNDTIMEO)
	if err != nil || tv.Nano() <= 0 {
		if a.deliver(fd) != nil {
			return interrupted
		}
		_ = a.g.listener.Continue(a.id) // ErrGone: when the call is begun again, again continues it
		return switched
	}
	// The kernel would return EALREADY when the time is over: it has not begun the connection.
	expires, err := a.timer(fd, time.Duration(tv.Nano()))
	if err != nil {
		return other
	}
	defer expires.Close()
	if a.deliver(fd) != nil {
		return interrupted
	}
	if expires.wait() {
		_ = a.g.listener.Return(a.id, unix.EINPROGRESS)
	} else {
		_ = a.g.listener.Continue(a.id)
	}
	return switched
}

// timer is the time that a caller has for a connection.
type timer struct {
	*os.File // a copy: closing it takes the socket out of the runtime's epoll set
	a        *attempt
	raw      syscall.RawConn
	limit    time.Duration
}

// timer is called before the socket blocks: the runtime waits for others by threads.
func (a *attempt) timer(fd int, limit time.Duration) (timer, error) {
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return timer{}, err
	}
	t := timer{File: os.NewFile(uintptr(own), "connection"), a: a, limit: limit}
	if t.raw, err = t.SyscallConn(); err != nil {
		t.Close()
	}
	return t, err
}

// wait reports whether the time is over before it is known what becomes of the connection.
func (t timer) wait() bool {
	for end := time.Now().Add(t.limit); ; {
		_ = t.SetWriteDeadline(time.Now().Add(min(goneInterval, time.Until(end))))
		err := t.raw.Write(func(fd uintptr) bool { return state(int(fd)) != tcpSynSent })
		if !errors.Is(err, os.ErrDeadlineExceeded) || !t.a.g.listener.Valid(t.a.id) {
			return false
		}
		if !time.Now().Before(end) {
			return true
		}
	}
}

// deliver puts a socket into the place of the caller's.
func (a *attempt) deliver(fd int) error {
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, a.flags&(unix.O_NONBLOCK|unix.O_RDWR)); err != nil {
		return err
	}
	return a.g.listener.Replace(a.id, fd, a.caller.fd, a.cloexec)
}

// state returns the state of a TCP socket; -1 where it has none.
func state(fd int) int {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return -1
	}
	return int(info.State)
}
