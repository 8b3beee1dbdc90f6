package bridge

import (
	"bytes"
	"net"
	"net/netip"
	"os/exec"
	"testing"
	"time"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/tests/nettest"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestChatter: of what a pod's IPv6 says to all others, only what they need arrives,
// and no pod can become the router of another, even after somebody has flushed the
// packet filter. Where the bridge cannot see to that, the pods themselves do.
func TestChatter(t *testing.T) {
	const (
		listenerReport, listenerReport2     = 131, 143
		routerSolicitation, routerAdvertise = 133, 134
		echoRequest                         = 128
	)
	w := newWorld(t)
	b := w.bridge(Options{})
	one, two := w.Pod("one"), w.Pod("two")
	w.Setup(b, one)
	w.Setup(b, two)
	check := func(when string) {
		t.Helper()
		got := hears(t, two.NetNS, func() {
			for _, kind := range []byte{listenerReport, listenerReport2, routerSolicitation, routerAdvertise, echoRequest} {
				shout(t, one.NetNS, kind)
			}
		}, echoRequest)
		if !bytes.Equal(got, []byte{echoRequest}) {
			t.Errorf("%s, the other pod hears ICMPv6 messages of types %v, want %d alone", when, got, echoRequest)
		}
	}
	check("at first")
	nettest.Must(t, w.Thread.Do(func() error {
		return exec.Command("nft", "delete", "table", "bridge", b.nft.securityTable().Name).Run()
	}))
	nettest.Eventually(t, "the table is back", func() bool { return b.nft.present(b.nft.securityTable()) == nil })
	check("after a flush")

	b.security.possible.Store(false)
	three := w.Pod("three")
	w.Setup(b, three)
	nettest.Must(t, netns.In(three.NetNS, func() error {
		for _, key := range []string{"accept_ra", "router_solicitations"} {
			if v, err := readSysctl("net/ipv6/conf/eth0/" + key); err != nil || v != 0 {
				t.Errorf("%s of a pod whose bridge drops nothing: %d, %v", key, v, err)
			}
		}
		return nil
	}))
}

// TestLinkLocal: pods have the address that the kernel would have given them, to be
// used at once, and the node's ends of their links have none.
func TestLinkLocal(t *testing.T) {
	w := newWorld(t)
	b := w.bridge(Options{})
	pod := w.Pod("one")
	r := w.Setup(b, pod)
	mac, err := net.ParseMAC(r.MAC)
	nettest.Must(t, err)
	locals := func(h *netlink.Handle, name string) (out []netlink.Addr) {
		link, err := h.LinkByName(name)
		nettest.Must(t, err)
		all, err := addresses(h, link)
		nettest.Must(t, err)
		for _, a := range all {
			if a.IP.IsLinkLocalUnicast() {
				out = append(out, a)
			}
		}
		return out
	}
	nettest.Must(t, netns.In(pod.NetNS, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		got := locals(h, podInterface)
		if len(got) != 1 || prefixOf(got[0].IPNet) != netip.PrefixFrom(linkLocalOf(mac), 64) || got[0].Flags&unix.IFA_F_TENTATIVE != 0 {
			t.Errorf("link-local addresses %v, want %s", got, linkLocalOf(mac))
		}
		return nil
	}))
	if got := locals(b.links.rt, vethName(pod.ID)); len(got) > 0 {
		t.Errorf("the node's end of the pod's link has %v", got)
	}
	want := netip.MustParseAddr("fe80::858:aff:fe58:2") // of 0a:58:0a:58:00:02
	if got := linkLocalOf(net.HardwareAddr{0x0a, 0x58, 0x0a, 0x58, 0, 2}); got != want {
		t.Errorf("linkLocalOf: %s, want %s", got, want)
	}
}

// shout sends an ICMPv6 message of the kind from the namespace to all nodes of the link.
func shout(t *testing.T, nsPath string, kind byte) {
	t.Helper()
	nettest.Must(t, netns.In(nsPath, func() error {
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		// As neighbour discovery requires (RFC 4861, 6.1.2).
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255); err != nil {
			return err
		}
		link, err := net.InterfaceByName(podInterface)
		if err != nil {
			return err
		}
		message := make([]byte, 24) // the kernel fills in the checksum
		message[0] = kind
		all := netip.MustParseAddr("ff02::1").As16()
		return unix.Sendto(fd, message, 0, &unix.SockaddrInet6{Addr: all, ZoneId: uint32(link.Index)})
	}))
}

// hears returns the types of the ICMPv6 messages to all nodes that reach the
// namespace while f runs, and then until one of type last has.
func hears(t *testing.T, nsPath string, f func(), last byte) (types []byte) {
	t.Helper()
	var fd int
	nettest.Must(t, netns.In(nsPath, func() (err error) {
		fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
		return err
	}))
	defer unix.Close(fd)
	nettest.Must(t, unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1))
	patience := unix.NsecToTimeval(int64(20 * time.Second))
	nettest.Must(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience))
	f()
	body, control := make([]byte, 1500), make([]byte, 100)
	for {
		_, n, _, _, err := unix.Recvmsg(fd, body, control, 0)
		if err == unix.EINTR {
			continue
		}
		nettest.Must(t, err)
		// struct in6_pktinfo begins with the destination.
		to := netip.AddrFrom16([16]byte(control[unix.SizeofCmsghdr:n]))
		if to != netip.MustParseAddr("ff02::1") {
			continue
		}
		types = append(types, body[0])
		if body[0] == last {
			return types
		}
	}
}

// TestFragments: what a pod may send it may send in fragments too: datagrams and pings
// that are bigger than the link's packets, by both families.
func TestFragments(t *testing.T) {
	w := newWorld(t)
	b := w.bridge(Options{MTU: 1500})
	one, two := w.Pod("one"), w.Pod("two")
	w.Setup(b, one)
	r := w.Setup(b, two)
	var server net.PacketConn
	nettest.Must(t, netns.In(two.NetNS, func() (err error) {
		server, err = net.ListenPacket("udp", "[::]:80")
		return err
	}))
	defer server.Close()
	big := bytes.Repeat([]byte("x"), 4000)
	patience := unix.NsecToTimeval(int64(time.Minute))
	for _, ip := range r.IPs {
		c, err := netns.DialIn(t.Context(), one.NetNS, "udp", nettest.HostPort(ip, 80))
		nettest.Must(t, err)
		_, err = c.Write(big)
		nettest.Must(t, err)
		c.Close()
		nettest.Must(t, server.SetReadDeadline(time.Now().Add(time.Minute)))
		buf := make([]byte, 5000)
		if n, _, err := server.ReadFrom(buf); err != nil || n != len(big) {
			t.Errorf("a datagram of %d bytes to %s: %d bytes, %v", len(big), ip, n, err)
		}
	}
	nettest.Must(t, netns.In(one.NetNS, func() error {
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience); err != nil {
			return err
		}
		const echoRequest, echoReply = 128, 129
		if err := unix.Sendto(fd, append([]byte{echoRequest}, big...), 0, &unix.SockaddrInet6{Addr: r.IPs[1].As16()}); err != nil {
			return err
		}
		for buf := make([]byte, 5000); ; {
			n, err := unix.Read(fd, buf)
			if err != nil {
				return err
			}
			if buf[0] == echoReply {
				if n != len(big)+1 {
					t.Errorf("an answer of %d bytes to a ping of %d", n, len(big)+1)
				}
				return nil
			}
		}
	}))
}
