package attack

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
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
	addresses := []string{"127.0.0.1", "127.0.0.2", "0.0.0.0", "::1", "::", "10.88.0.1", "10.0.2.2", "10.0.2.3", "10.0.2.100", "10.0.2.1", "169.254.1.1", "192.168.127.254", "192.168.127.1", "fd00::2"}
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
