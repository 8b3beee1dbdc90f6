package bridge

import (
	"bytes"
	"crypto/rand"
	"io"
	"net"
	"testing"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/tests/nettest"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestBigPackets: where the kernel can, TCP packets by IPv4 between pods, and from the
// node to its pods, are bigger than 64 KiB. What is sent arrives everywhere, also where
// they leave the node and are cut before.
func TestBigPackets(t *testing.T) {
	w := newWorld(t)
	b := w.bridge(Options{})
	one, two := w.Pod("one"), w.Pod("two")
	r1 := w.Setup(b, one)
	w.Setup(b, two)
	limit := func(ns, name string) (size uint32) {
		nettest.Must(t, netns.In(ns, func() error {
			h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
			if err != nil {
				return err
			}
			defer h.Close()
			link, err := h.LinkByName(name)
			if err == nil {
				size = link.Attrs().GSOIPv4MaxSize
			}
			return err
		}))
		return size
	}
	if limit(w.NodeNS, "lo") > 0 {
		for _, at := range [][2]string{{one.NetNS, podInterface}, {w.NodeNS, vethName(one.ID)}, {w.NodeNS, "subpod0"}} {
			if got := limit(at[0], at[1]); got != biggestTCP {
				t.Errorf("%s takes packets of %d bytes, want %d", at[1], got, biggestTCP)
			}
		}
	}
	for _, way := range []struct{ from, to, host string }{
		{two.NetNS, one.NetNS, r1.IPs[0].String()}, {two.NetNS, one.NetNS, r1.IPs[1].String()},
		{w.NodeNS, one.NetNS, r1.IPs[0].String()}, {w.NodeNS, one.NetNS, r1.IPs[1].String()},
		{one.NetNS, w.NodeNS, r1.Gateways[0].String()}, {one.NetNS, w.NodeNS, r1.Gateways[1].String()},
		{one.NetNS, w.Outside, "192.0.2.1"}, {one.NetNS, w.Outside, "2001:db8::1"},
	} {
		transfer(t, way.from, way.to, way.host)
	}
}

// transfer sends 16 MiB from one network namespace to an address in another.
func transfer(t *testing.T, from, to, host string) {
	t.Helper()
	var l net.Listener
	nettest.Must(t, netns.In(to, func() (err error) {
		l, err = net.Listen("tcp", net.JoinHostPort(host, "9000"))
		return err
	}))
	defer l.Close()
	sent := make([]byte, 16<<20)
	_, _ = rand.Read(sent)
	c, err := netns.DialIn(t.Context(), from, "tcp", l.Addr().String())
	if err != nil {
		t.Fatalf("to %s: %v", host, err)
	}
	go func() {
		_, _ = c.Write(sent)
		c.Close()
	}()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if got, err := io.ReadAll(server); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("to %s: %d bytes of %d arrived, or others than were sent (%v)", host, len(got), len(sent), err)
	}
}
