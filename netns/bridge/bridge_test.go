package bridge

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/tests/nettest"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestPodsReachEachOtherAndTheOutside(t *testing.T) {
	w := newWorld(t)
	b := w.bridge(Options{})
	p1, p2 := w.Pod("one"), w.Pod("two")
	r1, r2 := w.Setup(b, p1), w.Setup(b, p2)
	if len(r1.IPs) != 2 || !r1.IPs[0].Is4() || !r1.IPs[1].Is6() || r1.MTU != 65520 || r1.Interface != "eth0" {
		t.Fatalf("result %+v: want IPv4 before IPv6, MTU 65520, eth0", r1)
	}
	w.Serve(p1.NetNS, "one", 80)
	w.Serve(w.Outside, "outside", 80)
	w.Serve(w.NodeNS, "node", 80)
	for i := range r1.IPs {
		for _, network := range []string{"tcp", "udp"} {
			w.WantAnswer(p2.NetNS, network, nettest.HostPort(r1.IPs[i], 80), "one", r2.IPs[i].String())
			w.WantAnswer(w.NodeNS, network, nettest.HostPort(r1.IPs[i], 80), "one", r1.Gateways[i].String())
			w.WantAnswer(p2.NetNS, network, nettest.HostPort(r2.Gateways[i], 80), "node", r2.IPs[i].String())
		}
	}
	w.WantAnswer(p1.NetNS, "tcp", "192.0.2.1:80", "outside", "192.0.2.2")
	w.WantAnswer(p1.NetNS, "udp", "192.0.2.1:80", "outside", "192.0.2.2")
	w.WantAnswer(p1.NetNS, "tcp", "[2001:db8::1]:80", "outside", "2001:db8::2")
}

func TestSetupAndTeardownAreIdempotent(t *testing.T) {
	w := newWorld(t)
	b := w.bridge(Options{})
	ctx := context.Background()
	pod := w.Pod("one", netns.PortMapping{Proto: "tcp", HostPort: 8080, ContainerPort: 80})
	r1 := w.Setup(b, pod)
	if r2 := w.Setup(b, pod); !slices.Equal(r1.IPs, r2.IPs) {
		t.Errorf("second Setup gave %v, the first %v", r2.IPs, r1.IPs)
	}
	for range 2 {
		nettest.Must(t, b.Teardown(ctx, pod.ID))
	}
	nettest.Must(t, b.Teardown(ctx, nettest.PodID("never seen")))
	if left, _ := os.ReadDir(filepath.Join(w.Dir, "run", "addresses")); len(left) != 0 {
		t.Errorf("addresses are left: %v", left)
	}
	// The same pod again, in the same namespace, which still has the old link.
	w.Serve(pod.NetNS, "one", 80)
	r3 := w.Setup(b, pod)
	w.WantAnswer(w.NodeNS, "tcp", nettest.HostPort(r3.IPs[0], 80), "one", "")
	w.WantAnswer(w.NodeNS, "tcp", "127.0.0.1:8080", "one", "")
	// A pod that has been torn down cannot be heard, even if its namespace lives.
	nettest.Must(t, b.Teardown(ctx, pod.ID))
	w.WantNothing(w.NodeNS, "tcp", nettest.HostPort(r3.IPs[0], 80))
	quiet := w.Pod("quiet") // a socket of the test would hold the other's namespace
	w.Setup(b, quiet)
	nettest.Must(t, b.Teardown(ctx, quiet.ID))
	nettest.Must(t, netns.Unpin(filepath.Dir(quiet.NetNS)))
	nettest.Eventually(t, "the link goes with its namespace", func() bool { return w.vethCount() == 1 })
}

func TestBadPods(t *testing.T) {
	w := newWorld(t)
	b := w.bridge(Options{})
	ns := w.Pin("pod")
	for name, pod := range map[string]netns.Pod{
		"path as ID": {ID: "../../../../etc/passwd", NetNS: ns},
		"short ID":   {ID: "abc", NetNS: ns},
		"protocol":   {ID: nettest.PodID("x"), NetNS: ns, Ports: []netns.PortMapping{{Proto: "icmp", HostPort: 1, ContainerPort: 1}}},
		"port 0":     {ID: nettest.PodID("x"), NetNS: ns, Ports: []netns.PortMapping{{Proto: "tcp", HostPort: 0, ContainerPort: 1}}},
	} {
		if _, err := b.Setup(context.Background(), pod); !errors.Is(err, netns.ErrBadPod) {
			t.Errorf("%s: error %v, want ErrBadPod", name, err)
		}
	}
	_, err := b.Setup(context.Background(), netns.Pod{ID: nettest.PodID("x"), NetNS: filepath.Join(w.Dir, "no-such-namespace")})
	if err == nil {
		t.Error("Setup in a missing namespace succeeded")
	}
	if left := b.ipam.of(nettest.PodID("x")); len(left) != 0 {
		t.Errorf("a failed Setup left addresses %v", left)
	}
}

func TestNotReadyBeforeReconcile(t *testing.T) {
	w := newWorld(t)
	b, err := New(Options{Thread: w.Thread, StateDir: t.TempDir(), RunDir: t.TempDir()})
	nettest.Must(t, err)
	defer b.Close()
	if err := b.Status(context.Background()); !errors.Is(err, netns.ErrNotReady) {
		t.Errorf("Status before Reconcile: %v", err)
	}
	if _, err := b.Setup(context.Background(), w.Pod("early")); !errors.Is(err, netns.ErrNotReady) {
		t.Errorf("Setup before Reconcile: %v", err)
	}
	nettest.Must(t, b.Reconcile(context.Background(), nil))
	nettest.Must(t, b.Status(context.Background()))
}

func TestSubnetsAvoidRoutesOfHostAndNode(t *testing.T) {
	w := newWorld(t)
	// The host (this very process) has 10.88.0.0/16, the node fd10:88::/64.
	for ns, routes := range map[string][]string{
		"":       {"10.88.3.0/24", "10.89.0.0/16"},
		w.NodeNS: {"10.64.0.0/10", "fd10:88::/60"},
	} {
		nettest.Must(t, netns.In(ns, func() error { return blackholes(routes, true) }))
		defer netns.In(ns, func() error { return blackholes(routes, false) })
	}
	b, err := New(Options{Thread: w.Thread, StateDir: t.TempDir(), RunDir: t.TempDir()})
	nettest.Must(t, err)
	defer b.Close()
	got := b.Subnets()
	want := []netip.Prefix{netip.MustParsePrefix("172.30.0.0/16"), netip.MustParsePrefix("fd10:89::/64")}
	if !slices.Equal(got, want) {
		t.Errorf("subnets %v, want %v", got, want)
	}
}

func blackholes(routes []string, add bool) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	change := h.RouteAdd
	if !add {
		change = h.RouteDel
	}
	for _, r := range routes {
		err = errors.Join(err, change(&netlink.Route{Dst: ipNet(netip.MustParsePrefix(r)), Type: unix.RTN_UNREACHABLE}))
	}
	return err
}

// TestReports: a pod's multicast listener reports do not reach the others. The bridge
// has reports of its own when pods come, and those may.
func TestReports(t *testing.T) {
	w := newWorld(t)
	b := w.bridge(Options{})
	one, two := w.Pod("one"), w.Pod("two")
	w.Setup(b, one)
	var fd int
	nettest.Must(t, netns.In(one.NetNS, func() (err error) {
		ipv6 := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_IPV6))
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(ipv6))
		return err
	}))
	defer unix.Close(fd)
	sender, err := net.ParseMAC(w.Setup(b, two).MAC)
	nettest.Must(t, err)
	nettest.Eventually(t, "the pod has sent reports", func() (sent bool) {
		nettest.Must(t, netns.In(two.NetNS, func() error {
			text, err := os.ReadFile("/proc/thread-self/net/snmp6")
			for line := range strings.Lines(string(text)) {
				if rest, ok := strings.CutPrefix(line, "Icmp6OutMLDv2Reports "); ok {
					n, _ := strconv.Atoi(strings.TrimSpace(rest))
					sent = n > 1
				}
			}
			return err
		}))
		return sent
	})
	for packet := make([]byte, 1500); ; {
		n, from, err := unix.Recvfrom(fd, packet, 0)
		if errors.Is(err, unix.EAGAIN) {
			return
		}
		nettest.Must(t, err)
		if from := from.(*unix.SockaddrLinklayer); bytes.Equal(from.Addr[:from.Halen], sender) {
			t.Errorf("a packet of the other pod has come: %x", packet[:n])
		}
	}
}
