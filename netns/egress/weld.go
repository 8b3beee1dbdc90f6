package egress

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A socket is welded to the interface that leads to its peer before the pod gets it:
//
//   - SO_BINDTODEVICE: it sends by that interface, and takes what comes by it, in each state and for
//     each peer. Only CAP_NET_RAW over the host's network changes it, which nothing of the node
//     has (canWeld). The addresses of the host's loopback interface are none of that one's; those of
//     the interface itself are, as the uplink leads to them.
//   - It is bound to a port that has been asked for by number: the kernel does not take such a
//     port back when the connection ends (SOCK_BINDPORT_LOCK), and binds no socket twice.
//
// A filter (SO_ATTACH_FILTER, SO_LOCK_FILTER) would weld it to the peer alone; newer kernels
// (seen: 6.18) do not let a user put one on a TCP socket.

// errOwn is returned for addresses that the host has on no interface but its loopback.
var errOwn = errors.New("an address of the host's loopback interface")

// weld prepares a new socket for a connection by an interface.
func weld(fd int, domain int, index int) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, index); err != nil {
		return os.NewSyscallError("SO_BINDTOIFINDEX", err)
	}
	return bindAny(fd, domain)
}

// canWeld reports an error unless what is welded stays so.
func canWeld() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, lo.Attrs().Index); err != nil {
		return fmt.Errorf("sockets cannot be bound to an interface (Linux 5.7): %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, 0); err == nil {
		return errors.New("the node has privileges over the network that it is in, and so pods could bind such sockets to other interfaces")
	}
	return nil
}

// Ports that are tried are those of the host that programs get; bindTries is how many.
const (
	bindTries            = 32
	firstPort, lastPorts = 32768, 60999
)

// bindAny binds a socket to a port by its number. Several may have one: their peers differ, or
// connect(2) refuses it.
func bindAny(fd int, domain int) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return os.NewSyscallError("SO_REUSEADDR", err)
	}
	first, last := portRange()
	text, _ := readBounded("/proc/sys/net/ipv4/ip_local_reserved_ports")
	err := error(unix.EADDRINUSE)
	for range bindTries {
		port := first + rand.IntN(last-first+1)
		if reserved(text, port) {
			continue
		}
		var addr unix.Sockaddr = &unix.SockaddrInet4{Port: port}
		if domain == unix.AF_INET6 {
			addr = &unix.SockaddrInet6{Port: port}
		}
		if err = unix.Bind(fd, addr); !errors.Is(err, unix.EADDRINUSE) {
			break
		}
	}
	return os.NewSyscallError("bind", err)
}

// reserved reports whether a port is among those that the kernel gives to no program which does not ask
// for it by number, in the form of ip_local_reserved_ports.
func reserved(ports string, port int) bool {
	for text := range strings.SplitSeq(strings.TrimSpace(ports), ",") {
		from, to, isRange := strings.Cut(text, "-")
		first, err := strconv.Atoi(from)
		last := first
		if isRange && err == nil {
			last, err = strconv.Atoi(to)
		}
		if err == nil && first <= port && port <= last {
			return true
		}
	}
	return false
}

// portRange returns the host's ports for outgoing connections.
func portRange() (first, last int) {
	text, err := readBounded("/proc/sys/net/ipv4/ip_local_port_range")
	if err == nil {
		if _, err = fmt.Sscan(text, &first, &last); err == nil && first > 0 && first <= last {
			return first, last
		}
	}
	return firstPort, lastPorts
}

const (
	// wayInterval is how long the interface that leads to an address is taken for unchanged.
	wayInterval = time.Second
	// maxWays bounds the addresses that are remembered.
	maxWays = 1024
)

// ways knows which interface of the host leads to an address.
type ways struct {
	mu    sync.Mutex
	known map[netip.Addr]way
}

type way struct {
	index int
	err   error
	read  time.Time
}

// to returns the index of the interface. errOwn, and unix.Errno where there is none.
func (w *ways) to(a netip.Addr) (int, error) {
	a = a.Unmap()
	w.mu.Lock()
	defer w.mu.Unlock()
	if k, ok := w.known[a]; ok && time.Since(k.read) < wayInterval {
		return k.index, k.err
	}
	if len(w.known) >= maxWays || w.known == nil {
		w.known = map[netip.Addr]way{}
	}
	k := way{read: time.Now()}
	routes, err := netlink.RouteGet(a.AsSlice())
	switch {
	case err != nil:
		k.err = err
	case len(routes) == 0:
		k.err = unix.ENETUNREACH
	case routes[0].Type == unix.RTN_LOCAL:
		k.index, k.err = ownInterface(a)
	case routes[0].Type != unix.RTN_UNICAST:
		k.err = errOwn
	default:
		k.index = routes[0].LinkIndex
	}
	w.known[a] = k
	return k.index, k.err
}

// ownInterface returns the interface of the host that has an address. errOwn.
func ownInterface(a netip.Addr) (int, error) {
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return 0, err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return 0, err
	}
	for _, own := range addrs {
		if ip, ok := netip.AddrFromSlice(own.IP); ok && ip.Unmap() == a && own.LinkIndex != lo.Attrs().Index {
			return own.LinkIndex, nil
		}
	}
	return 0, errOwn
}
