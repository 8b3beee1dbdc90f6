// Package nettest is the conformance suite of netns.Network, on real namespaces,
// and the small world that it runs in.
package nettest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/subpod/subpod/netns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// World is what a test runs in: the process's own network namespace stands for
// the host's, and behind a node network namespace there is an outside.
type World struct {
	T       testing.TB
	Dir     string
	Thread  *netns.Thread
	NodeNS  string
	Outside string // path of a network namespace, 192.0.2.1 and 2001:db8::1
}

// New makes a world that ends with the test.
func New(t testing.TB) *World {
	t.Helper()
	w := &World{T: t, Dir: t.TempDir()}
	w.NodeNS, w.Outside = w.Pin("node"), w.Pin("outside")
	var err error
	if w.Thread, err = netns.OpenThread(w.NodeNS); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Thread.Close() })
	out, err := os.Open(w.Outside)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	// As rootlesskit and slirp4netns leave it: tap0 with a default route.
	Must(t, w.Thread.Do(func() error {
		return uplink("tap0", "192.0.2.2/24", "2001:db8::2/64", &netlink.Veth{
			// With the same index on both ends, the kernel may take a second to bring
			// up a veth (linkwatch: not urgent).
			LinkAttrs: netlink.LinkAttrs{Name: "tap0", MTU: 65520, Index: 1000}, PeerName: "up0", PeerNamespace: netlink.NsFd(int(out.Fd())),
		})
	}))
	Must(t, netns.In(w.Outside, func() error { return uplink("up0", "192.0.2.1/24", "2001:db8::1/64", nil) }))
	Must(t, w.Thread.Do(func() error {
		return errors.Join(defaultVia("192.0.2.1"), defaultVia("2001:db8::1"))
	}))
	w.awaitUplink(w.NodeNS, "tap0", "2001:db8::2")
	w.awaitUplink(w.Outside, "up0", "2001:db8::1")
	return w
}

// awaitUplink waits until the kernel has brought the interface into service and the
// neighbours can find its address, by the multicast group of RFC 4291, 2.7.1. A first
// packet that comes before is lost, and its sender tries again after a second.
func (w *World) awaitUplink(ns, name, address string) {
	w.T.Helper()
	a := netip.MustParseAddr(address).As16()
	group := fmt.Sprintf("ff0200000000000000000001ff%x", a[13:])
	Eventually(w.T, name+" in service", func() (ready bool) {
		Must(w.T, netns.In(ns, func() error {
			h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
			if err != nil {
				return err
			}
			defer h.Close()
			link, err := h.LinkByName(name)
			if err != nil {
				return err
			}
			groups, err := os.ReadFile("/proc/thread-self/net/igmp6")
			ready = link.Attrs().OperState == netlink.OperUp && strings.Contains(string(groups), " "+group+" ")
			return err
		}))
		return ready
	})
}

func uplink(name, v4, v6 string, make netlink.Link) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	if make != nil {
		if err := h.LinkAdd(make); err != nil {
			return err
		}
	}
	link, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	for _, a := range []string{v4, v6} {
		addr := &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix(a)), Flags: unix.IFA_F_NODAD}
		if err := h.AddrAdd(link, addr); err != nil {
			return err
		}
	}
	return h.LinkSetUp(link)
}

func defaultVia(gw string) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	a := netip.MustParseAddr(gw)
	return h.RouteReplace(&netlink.Route{Gw: a.AsSlice(), Dst: ipNet(netip.PrefixFrom(zero(a), 0))})
}

// Must fails the test on an error.
func Must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Pin makes a network namespace that ends with the test.
func (w *World) Pin(name string) string {
	w.T.Helper()
	dir := filepath.Join(w.Dir, "pins", name)
	pins, err := netns.Pin(context.Background(), netns.PinSpec{Dir: dir, Net: true})
	Must(w.T, err)
	w.T.Cleanup(func() {
		if err := netns.Unpin(dir); err != nil {
			w.T.Error(err)
		}
	})
	return pins.Net
}

// PodID derives an ID from a name.
func PodID(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:])
}

// Pod makes the namespace of a pod.
func (w *World) Pod(name string, ports ...netns.PortMapping) netns.Pod {
	w.T.Helper()
	return netns.Pod{ID: PodID(name), Name: name, Namespace: "test", NetNS: w.Pin(name), Ports: ports}
}

// Setup connects a pod; it must succeed.
func (w *World) Setup(n netns.Network, pod netns.Pod) netns.Result {
	w.T.Helper()
	r, err := n.Setup(context.Background(), pod)
	Must(w.T, err)
	return r
}

// Serve answers TCP connections and UDP datagrams in a namespace with its name
// and the address that it sees the client as.
func (w *World) Serve(nsPath, name string, port int) {
	w.T.Helper()
	var l net.Listener
	var p net.PacketConn
	Must(w.T, netns.In(nsPath, func() (err error) {
		if l, err = net.Listen("tcp", fmt.Sprint("[::]:", port)); err != nil {
			return err
		}
		p, err = net.ListenPacket("udp", fmt.Sprint("[::]:", port))
		return err
	}))
	w.T.Cleanup(func() { l.Close(); p.Close() })
	answer := func(client net.Addr) []byte {
		a := netip.MustParseAddrPort(client.String())
		return []byte(name + " " + a.Addr().Unmap().WithZone("").String())
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write(answer(c.RemoteAddr()))
			c.Close()
		}
	}()
	go func() {
		buf := make([]byte, 100)
		for {
			_, from, err := p.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = p.WriteTo(answer(from), from)
		}
	}()
}

// Ask connects from a namespace and returns the server's answer. No packet may be
// lost: UDP is asked once, and a TCP connection that had to ask again is an error.
func (w *World) Ask(fromNS, network, addr string) (string, error) {
	return ask(fromNS, network, addr, time.Minute)
}

func ask(fromNS, network, addr string, patience time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := netns.DialIn(ctx, fromNS, network, addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if tcp, ok := c.(*net.TCPConn); ok {
		if err := noneLost(tcp); err != nil {
			return "", err
		}
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	if network == "udp" {
		if _, err := c.Write([]byte("?")); err != nil {
			return "", err
		}
		buf := make([]byte, 100)
		n, err := c.Read(buf)
		return string(buf[:n]), err
	}
	b, err := io.ReadAll(c)
	return string(b), err
}

// noneLost returns an error when the first packet of a connection was sent again.
func noneLost(c *net.TCPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var info *unix.TCPInfo
	var infoErr error
	if err := raw.Control(func(fd uintptr) {
		info, infoErr = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	}); err != nil {
		return err
	}
	if infoErr == nil && info.Total_retrans > 0 {
		infoErr = fmt.Errorf("the first packet was lost: %d were sent again", info.Total_retrans)
	}
	return infoErr
}

// WantAnswer checks the server's name and how it sees the client ("" = anything).
func (w *World) WantAnswer(fromNS, network, addr, server, client string) {
	w.T.Helper()
	got, err := w.Ask(fromNS, network, addr)
	if err != nil {
		w.T.Errorf("%s to %s from %s: %v", network, addr, filepath.Base(filepath.Dir(fromNS)), err)
		return
	}
	name, seen, _ := strings.Cut(got, " ")
	if name != server || (client != "" && seen != client) {
		w.T.Errorf("%s to %s: answer %q, want server %s that sees %s", network, addr, got, server, client)
	}
}

// WantNothing checks that nobody answers.
func (w *World) WantNothing(fromNS, network, addr string) {
	w.T.Helper()
	if got, err := ask(fromNS, network, addr, 300*time.Millisecond); err == nil {
		w.T.Errorf("%s to %s from %s: answer %q, want none", network, addr, filepath.Base(filepath.Dir(fromNS)), got)
	}
}

// HostPort joins an address and a port.
func HostPort(a netip.Addr, port int) string { return net.JoinHostPort(a.String(), fmt.Sprint(port)) }

// Eventually waits for what the kernel does in its own time.
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Errorf("did not happen in a minute: %s", what)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// zero returns the unspecified address of the same family.
func zero(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// Veths counts the pods' links in the node.
func (w *World) Veths() (count int) {
	w.T.Helper()
	Must(w.T, w.Thread.Do(func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		links, err := netns.Dump(h.LinkList)
		for _, l := range links {
			if l.Type() == "veth" && l.Attrs().Name != "tap0" {
				count++
			}
		}
		return err
	}))
	return count
}

// Throughput sends 4 MiB and returns bytes per second.
func (w *World) Throughput(fromNS, toNS string, addr netip.Addr) float64 {
	w.T.Helper()
	var l net.Listener
	Must(w.T, netns.In(toNS, func() (err error) {
		l, err = net.Listen("tcp", HostPort(addr, 5001))
		return err
	}))
	defer l.Close()
	conn, err := netns.DialIn(context.Background(), fromNS, "tcp", l.Addr().String())
	Must(w.T, err)
	peer, err := l.Accept()
	Must(w.T, err)
	defer peer.Close()
	start := time.Now() // before anything is sent: this thread may stall at any moment
	go func() {
		defer conn.Close()
		_, _ = conn.Write(make([]byte, 4<<20))
	}()
	n, err := io.Copy(io.Discard, peer)
	Must(w.T, err)
	return float64(n) / time.Since(start).Seconds()
}
