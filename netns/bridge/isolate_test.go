package bridge

import (
	"context"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/tests/nettest"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestIsolation(t *testing.T) {
	w := newWorld(t)
	b := w.bridge(Options{Isolate: true})
	in := func(namespace, name string, ports ...netns.PortMapping) netns.Pod {
		p := w.Pod(name, ports...)
		p.Namespace = namespace
		return p
	}
	a1, a2 := in("a", "a1", netns.PortMapping{Proto: "tcp", HostPort: 8080, ContainerPort: 80}), in("a", "a2")
	b1 := in("b", "b1")
	r1, r2 := w.Setup(b, a1), w.Setup(b, a2)
	r3 := w.Setup(b, b1)
	for _, p := range []netns.Pod{a1, a2, b1} {
		w.Serve(p.NetNS, p.Name, 80)
	}
	w.Serve(w.Outside, "outside", 80)
	check := func(when string) {
		t.Helper()
		t.Log(when)
		for i := range r1.IPs {
			for _, network := range []string{"tcp", "udp"} {
				w.WantAnswer(a2.NetNS, network, nettest.HostPort(r1.IPs[i], 80), "a1", "")
				w.WantNothing(b1.NetNS, network, nettest.HostPort(r1.IPs[i], 80))
			}
			w.WantNothing(a1.NetNS, "tcp", nettest.HostPort(r3.IPs[i], 80))
			w.WantAnswer(w.NodeNS, "tcp", nettest.HostPort(r3.IPs[i], 80), "b1", "") // probes
		}
		w.WantAnswer(b1.NetNS, "tcp", "192.0.2.1:80", "outside", "")
		w.WantAnswer(b1.NetNS, "tcp", "192.0.2.2:8080", "a1", "") // published to all
	}
	check("made")
	// By way of the node: a route over the gateway, and an entry for its hardware address.
	nettest.Must(t, netns.In(b1.NetNS, func() error { return routeVia(r3.Gateways[0], r1.IPs[0]) }))
	w.WantNothing(b1.NetNS, "tcp", nettest.HostPort(r1.IPs[0], 80))
	// With the address of a pod of the other namespace.
	nettest.Must(t, netns.In(b1.NetNS, func() error { return takeAddress(r2.IPs[0]) }))
	w.WantNothing(b1.NetNS, "tcp", nettest.HostPort(r1.IPs[0], 80))
	nettest.Must(t, netns.In(b1.NetNS, func() error { return dropAddress(r2.IPs[0]) }))

	b = w.bridge(Options{Isolate: true}, a1, a2, b1)
	check("after a restart")
	for _, p := range []netns.Pod{a1, a2, b1} {
		nettest.Must(t, b.Teardown(context.Background(), p.ID))
	}
	var got []byte
	nettest.Must(t, w.Thread.Do(func() (err error) {
		got, err = exec.Command("nft", "list", "table", "bridge", tableName).Output()
		return err
	}))
	want, _ := os.ReadFile("testdata/isolate.nft")
	if string(got) != string(want) {
		t.Errorf("rules differ from testdata/isolate.nft; they are now:\n%s", got)
	}
	// Without isolation nothing of it is left.
	w.bridge(Options{})
	var out []byte
	nettest.Must(t, w.Thread.Do(func() (err error) { out, err = exec.Command("nft", "list", "tables", "bridge").Output(); return err }))
	if strings.Contains(string(out), "table bridge "+tableName+"\n") {
		t.Errorf("after isolation was turned off: %s", out)
	}
}

func routeVia(gw, dst netip.Addr) error {
	return inPod(func(h *netlink.Handle, l netlink.Link) error {
		return h.RouteReplace(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: gw.AsSlice(), Dst: ipNet(netip.PrefixFrom(dst, dst.BitLen()))})
	})
}

func takeAddress(a netip.Addr) error {
	return inPod(func(h *netlink.Handle, l netlink.Link) error {
		return h.AddrReplace(l, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(a, 16))})
	})
}

func dropAddress(a netip.Addr) error {
	return inPod(func(h *netlink.Handle, l netlink.Link) error {
		return h.AddrDel(l, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(a, 16))})
	})
}

func inPod(f func(*netlink.Handle, netlink.Link) error) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	link, err := h.LinkByName(podInterface)
	if err != nil {
		return err
	}
	return f(h, link)
}
