package bridge

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/tests/nettest"
)

// frameTo returns an Ethernet frame with the head of an IP packet to an address.
func frameTo(to netip.Addr) []byte {
	kind, head := []byte{0x86, 0xdd}, append([]byte{0x60, 7: 64, 23: 9}, to.AsSlice()...)
	if to.Is4() {
		kind, head = []byte{8, 0}, append([]byte{0x45, 3: 20, 8: 64, 17, 15: 9}, to.AsSlice()...)
	}
	return append(append([]byte{2, 5: 1, 6: 2, 11: 2}, kind...), head...)
}

// packets makes a packet socket on an interface, for frames of every protocol.
func packets(name string) (int, error) {
	link, err := net.InterfaceByName(name)
	if err != nil {
		return -1, err
	}
	const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all)
	if err != nil {
		return -1, err
	}
	return fd, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index})
}

// TestGuardUplink: frames to the receiver's own addresses do not leave by the uplink, whatever
// their sender calls them, and past the queue; also once the table is deleted, or the
// interface made again, or where it is being made again when the guard begins.
func TestGuardUplink(t *testing.T) {
	w := newWorld(t)
	make := func() {
		t.Helper()
		nettest.Must(t, w.Thread.Do(func() error {
			v := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "up0"}, PeerName: "up1"}
			if err := netlink.LinkAdd(v); err != nil {
				return err
			}
			for _, name := range []string{"up0", "up1"} {
				if err := netlink.LinkSetUp(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, Index: mustIndex(name)}}); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	make()
	stop, err := GuardUplink(w.Thread, "up0", slog.Default())
	nettest.Must(t, err)
	t.Cleanup(stop)
	out, in := -1, -1 // closing them takes long
	open := func() {
		t.Helper()
		unix.Close(out)
		unix.Close(in)
		nettest.Must(t, w.Thread.Do(func() (err error) {
			if out, err = packets("up0"); err == nil {
				in, err = packets("up1")
			}
			return err
		}))
		nettest.Must(t, unix.SetsockoptTimeval(in, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 20}))
	}
	t.Cleanup(func() { unix.Close(out); unix.Close(in) })
	passed := func(to string, protocol uint16, bypass int) bool {
		t.Helper()
		nettest.Must(t, unix.SetsockoptInt(out, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, bypass))
		link := &unix.SockaddrLinklayer{Ifindex: index(t, w.Thread, "up0"), Protocol: protocol<<8 | protocol>>8}
		last := netip.MustParseAddr("203.0.113.9")
		_ = unix.Sendto(out, frameTo(netip.MustParseAddr(to)), 0, link) // ENOBUFS where it is dropped
		nettest.Must(t, unix.SetsockoptInt(out, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 0))
		nettest.Must(t, unix.Sendto(out, frameTo(last), 0, &unix.SockaddrLinklayer{Ifindex: link.Ifindex, Protocol: 8}))
		came := false
		for buf := [200]byte{}; ; {
			n, err := unix.Read(in, buf[:])
			if err == unix.EINTR {
				continue // the Go runtime's signals, with SO_RCVTIMEO (signal(7))
			}
			nettest.Must(t, err)
			switch string(buf[:n]) {
			case string(frameTo(last)):
				return came
			case string(frameTo(netip.MustParseAddr(to))):
				came = true
			}
		}
	}
	check := func(when string) {
		t.Helper()
		for _, to := range []string{"127.0.0.1", "127.9.9.9", "0.0.0.0", "::1", "::", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:0.0.0.0", "::ffff:192.0.2.1"} {
			for _, protocol := range []uint16{unix.ETH_P_IP, unix.ETH_P_IPV6, unix.ETH_P_ARP, 0x1234} {
				for bypass := range 2 {
					if passed(to, protocol, bypass) {
						t.Errorf("%s: a frame to %s leaves, sent as %#x, bypass %d", when, to, protocol, bypass)
					}
				}
			}
		}
		for _, to := range []string{"192.0.2.1", "128.0.0.1", "1.127.0.0", "2001:db8::1", "fd00::2", "fe80::2", "::1:0:0:0"} {
			if !passed(to, unix.ETH_P_IP, 0) {
				t.Errorf("%s: no frame to %s leaves", when, to)
			}
		}
	}
	open()
	check("at the start")
	nettest.Must(t, w.Thread.Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		c.DelTable(uplinkTable)
		return c.Flush()
	}))
	filtered := func(when string) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); passed("127.0.0.1", unix.ETH_P_IP, 0); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal(when + ": frames to 127.0.0.1 leave")
			}
		}
		check(when)
	}
	filtered("the table was deleted")
	remove := func() {
		t.Helper()
		nettest.Must(t, w.Thread.Do(func() error {
			return netlink.LinkDel(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "up0", Index: mustIndex("up0")}})
		}))
	}
	remove()
	make()
	open()
	filtered("the interface was made again")
	stop()
	remove()
	stop, err = GuardUplink(w.Thread, "up0", slog.Default())
	nettest.Must(t, err)
	t.Cleanup(stop)
	make()
	open()
	filtered("the interface was made after the guard")
}

// TestGuardUplinkWithoutInterface: on kernels that take no table for an interface that is not
// there, it is written once there is one.
func TestGuardUplinkWithoutInterface(t *testing.T) {
	w := newWorld(t)
	written := make(chan error, 10)
	g := &uplinkGuard{thread: w.Thread, log: slog.Default(), write: func() error {
		_, err := net.InterfaceByName("up0")
		if err != nil {
			err = unix.ENOENT // as nf_tables has it
		}
		written <- err
		return err
	}}
	nettest.Must(t, g.start("up0"))
	t.Cleanup(g.stop)
	if err := <-written; err == nil {
		t.Fatal("there is an interface")
	}
	nettest.Must(t, w.Thread.Do(func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "up0"}, PeerName: "up1"})
	}))
	select {
	case err := <-written:
		nettest.Must(t, err)
	case <-time.After(20 * time.Second):
		t.Fatal("the table is not written")
	}
}

// TestPrefixOf: the node has routes for IPv4 addresses that are written as IPv6 ones.
func TestPrefixOf(t *testing.T) {
	for _, want := range []string{"10.0.2.0/24", "0.0.0.0/0", "::/0", "::/96", "::ffff:0:0/96", "fd00::/64"} {
		_, n, err := net.ParseCIDR(want)
		nettest.Must(t, err)
		if want == "::ffff:0:0/96" { // net takes it for IPv4
			n = &net.IPNet{IP: net.IPv4zero.To16(), Mask: net.CIDRMask(96, 128)}
		}
		if got := prefixOf(n); got != netip.MustParsePrefix(want) {
			t.Errorf("%v, want %s", got, want)
		}
	}
}

func mustIndex(name string) int {
	link, err := net.InterfaceByName(name)
	if err != nil {
		panic(fmt.Sprintf("interface %s: %v", name, err))
	}
	return link.Index
}

func index(t *testing.T, thread *netns.Thread, name string) (index int) {
	t.Helper()
	nettest.Must(t, thread.Do(func() error { index = mustIndex(name); return nil }))
	return index
}
