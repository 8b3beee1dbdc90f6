package attack

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/tests/node"
)

// tryLoopback sends datagrams to the node's own loopback addresses, in frames to the
// gateway: the node routes those addresses for host ports (route_localnet), and what
// listens there, such as the streaming server, takes all that comes for the node's own.
func (l link) tryLoopback() {
	const port = "12346"
	heard := l.inNode("net-datagrams", port)
	l.attack("net-loopback", port)
	if got := heard(); got != "own\n" {
		l.Errorf("the node gets the datagrams %q, want that to the gateway's address alone", got)
	}
}

// sendLoopback sends datagrams to addresses of the node's loopback interface, by the
// gateway, and an honest one at the end.
func sendLoopback(l linkEnds, port string) error {
	fd, err := packetSocket("eth0")
	if err != nil {
		return err
	}
	a, g := l.Attacker, l.Gateway
	at := netip.MustParseAddrPort(g.V4.String() + ":" + port)
	for _, to := range []string{"127.0.0.1", "127.0.0.53", "127.255.255.254"} {
		addr := netip.MustParseAddr(to)
		for _, from := range []netip.Addr{a.V4, addr} {
			data := append(ether(g.MAC, a.MAC, typeIPv4), ipv4(from, addr, udp(from, addr, 9, at.Port(), "to "+to))...)
			if _, err := unix.Write(fd, data); err != nil {
				return err
			}
		}
	}
	data := append(ether(g.MAC, a.MAC, typeIPv4), ipv4(a.V4, at.Addr(), udp(a.V4, at.Addr(), 9, at.Port(), "own"))...)
	_, err = unix.Write(fd, data)
	return err
}

// TestHostLoopback: what listens on the host's loopback alone, which there takes every
// client for the user, is out of reach for pods, also for those on the node's network.
func TestHostLoopback(t *testing.T) {
	c := newCage(t)
	for name, i := range map[string]inmate{
		"own network": {pid: ownPID}, "node's network": {pid: ownPID, net: onNode}, "node's network, privileged": {pid: ownPID, net: onNode, privileged: true},
	} {
		t.Run(name, func(t *testing.T) {
			c := c.in(t)
			c.escape(c.run(i), "reach", c.port)
		})
	}
}

// reachHost connects to a port of the host's loopback by all addresses that could lead
// there: args is the port.
func reachHost(args []string) error {
	addresses := []string{"127.0.0.1", "127.0.0.2", "0.0.0.0", "::1", "::", "10.88.0.1", "10.0.2.2", "10.0.2.3", "10.0.2.100", "10.0.2.1", "169.254.1.1", "192.168.127.254", "192.168.127.1", "fd00::2", "fd00::3", "fd00::100", "fe80::2%eth0", "fe80::2%tap0", "::ffff:127.0.0.1", "::127.0.0.1"}
	if interfaces, err := net.InterfaceAddrs(); err == nil {
		for _, a := range interfaces {
			host, _, _ := strings.Cut(a.String(), "/")
			addresses = append(addresses, host)
		}
	}
	results := make(chan string)
	for _, a := range addresses {
		go func() {
			conn, err := net.DialTimeout("tcp", net.JoinHostPort(a, args[0]), 1500*time.Millisecond)
			if err != nil {
				results <- ""
				return
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(1500 * time.Millisecond))
			b, _ := io.ReadAll(conn)
			results <- fmt.Sprintf("the host's loopback by %s: %s", a, b)
		}()
	}
	for range addresses {
		if r := <-results; r != "" && !strings.HasSuffix(r, ": ") { // the uplink itself may accept and hang up
			got("%s", r)
		}
	}
	return nil
}

// TestHostLoopbackByPackets: nor is it by packets that a pod makes itself, with the default
// capabilities (NET_RAW): to addresses that no program can connect to, and that the sockets of
// the uplink's program take for the host's own.
func TestHostLoopbackByPackets(t *testing.T) {
	c := newCage(t)
	outside := node.HostIPv4(t)
	for name, i := range map[string]inmate{
		"own network": {pid: ownPID}, "node's network": {pid: ownPID, net: onNode},
	} {
		t.Run(name, func(t *testing.T) {
			c := c.in(t)
			last, err := net.ListenPacket("udp4", outside+":0")
			if err != nil {
				t.Fatal(err)
			}
			defer last.Close()
			port := last.LocalAddr().(*net.UDPAddr).Port
			var listeners []net.PacketConn
			for _, a := range []string{"127.0.0.1", "127.0.0.53", "::1"} {
				l, err := net.ListenPacket("udp", net.JoinHostPort(a, fmt.Sprint(port)))
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
				listeners = append(listeners, l)
			}
			c.escape(c.run(i), "packets", outside, fmt.Sprint(port))
			// It was sent last, by the same way.
			buf := make([]byte, 100)
			_ = last.SetReadDeadline(time.Now().Add(20 * time.Second))
			if _, _, err := last.ReadFrom(buf); err != nil {
				t.Fatalf("nothing was sent at all: %v", err)
			}
			for _, l := range listeners {
				for _ = l.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); ; {
					n, _, err := l.ReadFrom(buf)
					if err != nil {
						break
					}
					t.Errorf("the host's loopback %s got a datagram %s", l.LocalAddr(), buf[:n])
				}
			}
		})
	}
}

// packetsToHost sends frames to addresses of the host's loopback, and a datagram at the end:
// args are an address of the host and the port of both.
func packetsToHost(args []string) error {
	port, err := strconv.ParseUint(args[1], 10, 16)
	if err != nil {
		return err
	}
	device := "eth0"
	from := map[bool]netip.Addr{true: netip.MustParseAddr("10.0.2.100"), false: netip.MustParseAddr("fd00::100")}
	to := hwAddr{0x52, 0x55, 10, 0, 2, 2}
	if _, err := net.InterfaceByName("tap0"); err == nil {
		device = "tap0"
	}
	link, err := net.InterfaceByName(device)
	if err != nil {
		return err
	}
	if device == "eth0" {
		to = macFor(netip.MustParseAddr("10.88.0.1"))
		addrs, err := link.Addrs()
		if err != nil {
			return err
		}
		for _, a := range addrs {
			if p := netip.MustParsePrefix(a.String()); !p.Addr().IsLinkLocalUnicast() {
				from[p.Addr().Is4()] = p.Addr()
			}
		}
	}
	fd, err := packetSocket(device)
	if err != nil {
		return err
	}
	own := hwAddr(link.HardwareAddr)
	for _, name := range []string{"127.0.0.1", "127.0.0.53", "0.0.0.0", "10.0.2.2", "10.0.2.3", "::1", "::", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:0.0.0.0", "fd00::2", "fd00::3", "fe80::2"} {
		a := netip.MustParseAddr(name)
		kind, packet := uint16(typeIPv6), ipv6(from[false], a, protoUDP, udp(from[false], a, 9, uint16(port), "to "+name))
		if a.Is4() {
			kind, packet = typeIPv4, ipv4(from[true], a, udp(from[true], a, 9, uint16(port), "to "+name))
		}
		// A filter may answer at once.
		if _, err := unix.Write(fd, append(ether(to, own, kind), packet...)); err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EPERM) {
			return err
		}
	}
	conn, err := net.Dial("udp4", net.JoinHostPort(args[0], args[1]))
	if err != nil {
		return err
	}
	_, err = conn.Write([]byte("the last"))
	return err
}
