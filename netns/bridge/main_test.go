package bridge

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
	"github.com/subpod/subpod/tests/nstest"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	netns.Dispatch()
	os.Exit(nstest.Main(m, nstest.Options{Net: true, PID: true, IPC: true, UTS: true, IDs: 65536}))
}

// world is what a test runs in: the process's own network namespace stands for
// the host's, and behind a node network namespace there is an outside.
type world struct {
	t       testing.TB
	dir     string
	node    *netns.Node
	nodeNS  string
	outside string // path of a network namespace, 192.0.2.1 and 2001:db8::1
	pods    []netns.Pod
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir()}
	w.nodeNS, w.outside = w.pin("node"), w.pin("outside")
	var err error
	if w.node, err = netns.OpenNode(w.nodeNS); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.node.Close() })
	out, err := os.Open(w.outside)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	// As rootlesskit and slirp4netns leave it: tap0 with a default route.
	must(t, w.node.Do(func() error {
		return uplink("tap0", "192.0.2.2/24", "2001:db8::2/64", &netlink.Veth{
			// With the same index on both ends, the kernel may take a second to bring
			// up a veth (linkwatch: not urgent).
			LinkAttrs: netlink.LinkAttrs{Name: "tap0", MTU: 65520, Index: 1000}, PeerName: "up0", PeerNamespace: netlink.NsFd(int(out.Fd())),
		})
	}))
	must(t, netns.In(w.outside, func() error { return uplink("up0", "192.0.2.1/24", "2001:db8::1/64", nil) }))
	must(t, w.node.Do(func() error {
		return errors.Join(defaultVia("192.0.2.1"), defaultVia("2001:db8::1"))
	}))
	return w
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
	return h.RouteReplace(&netlink.Route{Gw: a.AsSlice(), Dst: defaultNet(a)})
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// pin makes a network namespace that ends with the test.
func (w *world) pin(name string) string {
	w.t.Helper()
	dir := filepath.Join(w.dir, "pins", name)
	pins, err := netns.Pin(context.Background(), netns.PinSpec{Dir: dir, Net: true})
	must(w.t, err)
	w.t.Cleanup(func() {
		if err := netns.Unpin(dir); err != nil {
			w.t.Error(err)
		}
	})
	return pins.Net
}

// bridge opens the network on the world's state, as a server does at start.
func (w *world) bridge(o Options, live ...netns.Pod) *Bridge {
	w.t.Helper()
	o.Node, o.StateDir = w.node, filepath.Join(w.dir, "state")
	b, err := New(o)
	must(w.t, err)
	w.t.Cleanup(func() { b.Close() })
	must(w.t, b.Reconcile(context.Background(), live))
	return b
}

func podID(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:])
}

// pod makes the namespace of a pod.
func (w *world) pod(name string, ports ...netns.PortMapping) netns.Pod {
	w.t.Helper()
	return netns.Pod{ID: podID(name), Name: name, Namespace: "test", NetNS: w.pin(name), Ports: ports}
}

func (w *world) setup(b *Bridge, pod netns.Pod) netns.Result {
	w.t.Helper()
	r, err := b.Setup(context.Background(), pod)
	must(w.t, err)
	return r
}

// serve answers TCP connections and UDP datagrams in a namespace with its name
// and the address that it sees the client as.
func (w *world) serve(nsPath, name string, port int) {
	w.t.Helper()
	var l net.Listener
	var p net.PacketConn
	must(w.t, netns.In(nsPath, func() (err error) {
		if l, err = net.Listen("tcp", fmt.Sprint("[::]:", port)); err != nil {
			return err
		}
		p, err = net.ListenPacket("udp", fmt.Sprint("[::]:", port))
		return err
	}))
	w.t.Cleanup(func() { l.Close(); p.Close() })
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

// ask connects from a namespace and returns the server's answer.
func (w *world) ask(fromNS, network, addr string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	c, err := netns.DialIn(ctx, fromNS, network, addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
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

// wantAnswer checks the server's name and how it sees the client ("" = anything).
func (w *world) wantAnswer(fromNS, network, addr, server, client string) {
	w.t.Helper()
	start := time.Now()
	got, err := w.ask(fromNS, network, addr)
	if d := time.Since(start); d > 900*time.Millisecond {
		w.t.Errorf("%s to %s took %v: the first packet was lost", network, addr, d)
	}
	if err != nil {
		w.t.Errorf("%s to %s from %s: %v", network, addr, filepath.Base(filepath.Dir(fromNS)), err)
		return
	}
	name, seen, _ := strings.Cut(got, " ")
	if name != server || (client != "" && seen != client) {
		w.t.Errorf("%s to %s: answer %q, want server %s that sees %s", network, addr, got, server, client)
	}
}

func (w *world) wantNothing(fromNS, network, addr string) {
	w.t.Helper()
	if got, err := w.ask(fromNS, network, addr); err == nil {
		w.t.Errorf("%s to %s from %s: answer %q, want none", network, addr, filepath.Base(filepath.Dir(fromNS)), got)
	}
}

func hostPort(a netip.Addr, port int) string { return net.JoinHostPort(a.String(), fmt.Sprint(port)) }

// vethCount counts pod links in the node.
func (w *world) vethCount() int {
	w.t.Helper()
	n := 0
	must(w.t, w.node.Do(func() error {
		links, err := net.Interfaces()
		for _, l := range links {
			if strings.HasPrefix(l.Name, vethPrefix) && len(l.Name) == unix.IFNAMSIZ-1 {
				n++
			}
		}
		return err
	}))
	return n
}

// eventually waits for what the kernel does in its own time.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Errorf("did not happen in 10 s: %s", what)
}

// exchange sends a datagram and returns the answer.
func exchange(t testing.TB, c net.Conn) string {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	buf := make([]byte, 100)
	_, err := c.Write([]byte("?"))
	must(t, err)
	n, err := c.Read(buf)
	must(t, err)
	return string(buf[:n])
}

// routeLoopback makes the calling thread's namespace send 127.0.0.0/8 to gw.
func routeLoopback(gw netip.Addr) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return err
	}
	// With the address goes the local route.
	if err := h.AddrDel(lo, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix("127.0.0.1/8"))}); err != nil {
		return err
	}
	eth, err := h.LinkByName(podInterface)
	if err != nil {
		return err
	}
	return h.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Gw: gw.AsSlice(), Dst: ipNet(netip.MustParsePrefix("127.0.0.0/8"))})
}

// throughput sends 4 MiB and returns bytes per second.
func throughput(t testing.TB, fromNS, toNS, addr string) float64 {
	t.Helper()
	var l net.Listener
	must(t, netns.In(toNS, func() (err error) {
		l, err = net.Listen("tcp", net.JoinHostPort(addr, "5001"))
		return err
	}))
	defer l.Close()
	conn, err := netns.DialIn(context.Background(), fromNS, "tcp", l.Addr().String())
	must(t, err)
	peer, err := l.Accept()
	must(t, err)
	const total = 4 << 20
	go func() {
		defer conn.Close()
		_, _ = conn.Write(make([]byte, total))
	}()
	start := time.Now()
	n, err := io.Copy(io.Discard, peer)
	must(t, err)
	peer.Close()
	return float64(n) / time.Since(start).Seconds()
}
