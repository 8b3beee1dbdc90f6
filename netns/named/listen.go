package named

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/netns/bridge"
	"github.com/subpod/subpod/netns/resolver"
	"golang.org/x/sys/unix"
)

const (
	dnsPort = 53 // RFC 1035, 4.2
	// undoTimeout bounds the clean-up after a failed Setup, whose own context may have
	// ended.
	undoTimeout = 10 * time.Second
	// dropTimeout is how long the Holder may take to close its copies of sockets that it was
	// told to drop: until then their addresses are in use.
	dropTimeout = time.Second
)

// listeners are the name server's sockets in one network. The zero value has none.
type listeners struct {
	mu      sync.Mutex
	wanted  bool // there are pods that ask, whether or not it could listen
	addrs   []netip.Addr
	sockets map[string]io.Closer // by their name at the Holder
}

func (l *listeners) active() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.wanted
}

// newest returns the addresses that are in the subnets of new pods, at most one a family.
func (l *listeners) newest(b *bridge.Bridge) []netip.Addr {
	var out []netip.Addr
	for _, a := range l.addrs {
		if slices.ContainsFunc(b.Subnets(), func(s netip.Prefix) bool { return s.Contains(a) }) {
			out = append(out, a)
		}
	}
	return out
}

// speaker has the name server listen in networks.
type speaker struct {
	thread *netns.Thread
	held   Holder
	log    *slog.Logger
	server *resolver.Server

	dropped atomic.Pointer[time.Time] // when the Holder was told last to drop sockets
}

// drop has the Holder forget a socket.
func (s *speaker) drop(name string) error {
	defer s.noteDrop()
	return s.held.Drop(name)
}

// dropRest has the sockets closed that an earlier server has left and nobody has taken.
func (s *speaker) dropRest() error {
	defer s.noteDrop()
	return s.held.DropRest()
}

func (s *speaker) noteDrop() {
	now := time.Now()
	s.dropped.Store(&now)
}

// drops reports whether the Holder may not have closed yet what it was told to drop.
func (s *speaker) drops() bool {
	last := s.dropped.Load()
	return last != nil && time.Since(*last) < dropTimeout
}

// listen makes the name server answer on all addresses of the bridge, where it does not,
// and returns those that new pods ask: none where it cannot listen. Then pods ask the
// uplink's servers, as they would without names.
func (s *speaker) listen(name string, b *bridge.Bridge, l *listeners) []netip.Addr {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wanted = true
	gateways := b.Gateways()
	missing := slices.DeleteFunc(slices.Clone(gateways), func(a netip.Addr) bool { return slices.Contains(l.addrs, a) })
	if len(missing) == 0 {
		return l.newest(b)
	}
	for _, a := range missing {
		if err := s.open(name, a, b, l); err != nil {
			s.log.Error("pods of the network do not find each other by name: the name server cannot listen", "network", name, "address", a, "error", err)
			continue
		}
		l.addrs = append(l.addrs, a)
	}
	if err := b.SetResolvers(l.addrs); err != nil {
		s.log.Error("host ports may keep questions from the name server", "network", name, "error", err)
	}
	return l.newest(b)
}

// listenAgain is listen after the bridge was made again: sockets are bound to the interface.
func (s *speaker) listenAgain(name string, b *bridge.Bridge, l *listeners) {
	s.close(l)
	s.listen(name, b, l)
}

// silence closes the network's sockets for good.
func (s *speaker) silence(l *listeners) {
	s.close(l)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wanted = false
}

// close closes the network's sockets.
func (s *speaker) close(l *listeners) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name, socket := range l.sockets {
		socket.Close()
		if err := s.drop(name); err != nil {
			s.log.Warn("a socket stays open", "name", name, "error", err)
		}
	}
	l.sockets, l.addrs = nil, nil
}

// open serves on port 53 of an address, by UDP and TCP.
func (s *speaker) open(network string, addr netip.Addr, b *bridge.Bridge, l *listeners) error {
	if l.sockets == nil {
		l.sockets = map[string]io.Closer{}
	}
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var bind error
		// What comes by another interface is for somebody else.
		err := c.Control(func(fd uintptr) { bind = unix.BindToDevice(int(fd), b.Name()) })
		return errors.Join(err, bind)
	}}
	at := netip.AddrPortFrom(addr, dnsPort).String()
	udpName, tcpName := "dns/"+network+"/"+addr.String()+"/udp", "dns/"+network+"/"+addr.String()+"/tcp"
	udp, err := takeOrMake(s, udpName, b.Name(), net.FilePacketConn, func() (net.PacketConn, error) {
		return config.ListenPacket(context.Background(), "udp", at)
	})
	if err != nil {
		return err
	}
	tcp, err := takeOrMake(s, tcpName, b.Name(), net.FileListener, func() (net.Listener, error) {
		return config.Listen(context.Background(), "tcp", at)
	})
	if err != nil {
		return errors.Join(err, udp.Close(), s.drop(udpName))
	}
	l.sockets[udpName], l.sockets[tcpName] = udp, tcp
	go s.server.ServeUDP(network, udp.(*net.UDPConn))
	go s.server.ServeTCP(network, tcp)
	return nil
}

// takeOrMake returns the socket that an earlier server has left under the name, else one
// that make makes on the node's thread, and leaves that for later servers.
func takeOrMake[S io.Closer](sp *speaker, name, device string, from func(*os.File) (S, error), make func() (S, error)) (S, error) {
	if f := sp.held.Take(name); f != nil {
		defer f.Close()
		// One of a bridge that was made anew hears nothing any more.
		if bound, err := unix.GetsockoptString(int(f.Fd()), unix.SOL_SOCKET, unix.SO_BINDTODEVICE); err == nil && bound == device {
			if s, err := from(f); err == nil {
				return s, nil
			}
		}
	}
	var s S
	err := sp.thread.Do(func() (err error) { s, err = make(); return err })
	for errors.Is(err, unix.EADDRINUSE) && sp.drops() {
		time.Sleep(5 * time.Millisecond)
		err = sp.thread.Do(func() (err error) { s, err = make(); return err })
	}
	if err != nil {
		return s, err
	}
	if c, ok := any(s).(syscall.Conn); ok {
		var keep error
		raw, err := c.SyscallConn()
		if err == nil {
			err = raw.Control(func(fd uintptr) { keep = sp.held.Keep(name, int(fd)) })
		}
		if err := errors.Join(err, keep); err != nil {
			sp.log.Warn("questions of pods will be refused while the server is started again", "error", err)
		}
	}
	return s, nil
}

// dial connects to a server outside, from the node: as pods reach it. Only the socket is
// made on the node's thread, which is everybody's. A connection that is not made yet is
// waited for by the first write.
func (s *speaker) dial(network string, server netip.Addr) (net.Conn, error) {
	family, kind := unix.AF_INET, unix.SOCK_DGRAM
	var to unix.Sockaddr
	if server.Is4() {
		to = &unix.SockaddrInet4{Port: dnsPort, Addr: server.As4()}
	} else {
		family, to = unix.AF_INET6, &unix.SockaddrInet6{Port: dnsPort, Addr: server.As16()}
	}
	if network == "tcp" {
		kind = unix.SOCK_STREAM
	}
	var fd int
	err := s.thread.Do(func() (err error) {
		fd, err = unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), network)
	defer f.Close()
	if err := unix.Connect(fd, to); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return nil, err
	}
	return net.FileConn(f)
}
