package bridge

import (
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/tests/nettest"
	"github.com/subpod/subpod/tests/nstest"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	netns.Dispatch()
	os.Exit(nstest.Main(m, nstest.Options{Net: true, PID: true, IPC: true, UTS: true, IDs: 65536}))
}

// world is what a test runs in.
type world struct {
	*nettest.World
	open *Bridge
}

func newWorld(t testing.TB) *world { return &world{World: nettest.New(t)} }

// bridge opens the network on the world's state, as a server does at start. There are
// never two: the one before would repair what this one does otherwise.
func (w *world) bridge(o Options, live ...netns.Pod) *Bridge {
	w.T.Helper()
	o.Thread, o.StateDir, o.RunDir = w.Thread, filepath.Join(w.Dir, "state"), filepath.Join(w.Dir, "run")
	if w.open != nil {
		nettest.Must(w.T, w.open.Close())
	}
	b, err := New(o)
	nettest.Must(w.T, err)
	w.open = b
	w.T.Cleanup(func() { b.Close() })
	nettest.Must(w.T, b.Reconcile(context.Background(), live))
	return b
}

// vethCount counts pod links in the node.
func (w *world) vethCount() int {
	w.T.Helper()
	n := 0
	nettest.Must(w.T, w.Thread.Do(func() error {
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

// exchange sends a datagram and returns the answer.
func exchange(t testing.TB, c net.Conn) string {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	buf := make([]byte, 100)
	_, err := c.Write([]byte("?"))
	nettest.Must(t, err)
	n, err := c.Read(buf)
	nettest.Must(t, err)
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
	nettest.Must(t, netns.In(toNS, func() (err error) {
		l, err = net.Listen("tcp", net.JoinHostPort(addr, "5001"))
		return err
	}))
	defer l.Close()
	conn, err := netns.DialIn(context.Background(), fromNS, "tcp", l.Addr().String())
	nettest.Must(t, err)
	peer, err := l.Accept()
	nettest.Must(t, err)
	const total = 4 << 20
	start := time.Now()
	go func() {
		defer conn.Close()
		_, _ = conn.Write(make([]byte, total))
	}()
	n, err := io.Copy(io.Discard, peer)
	nettest.Must(t, err)
	peer.Close()
	return float64(n) / time.Since(start).Seconds()
}

// vethName returns the name of the node's end of a pod's link.
func vethName(podID string) string { return naming{veth: vethPrefix}.link(podID) }
