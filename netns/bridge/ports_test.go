package bridge

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"testing"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/tests/nettest"
)

func TestHostPorts(t *testing.T) {
	w := newWorld(t)
	b := w.bridge(Options{})
	var ports []netns.PortMapping
	for _, proto := range []string{"tcp", "udp"} {
		ports = append(ports, netns.PortMapping{Proto: proto, HostPort: 8080, ContainerPort: 80},
			netns.PortMapping{Proto: proto, HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: 8081, ContainerPort: 80},
			netns.PortMapping{Proto: proto, HostIP: netip.MustParseAddr("0.0.0.0"), HostPort: 8082, ContainerPort: 80},
			netns.PortMapping{Proto: proto, HostIP: netip.MustParseAddr("2001:db8::2"), HostPort: 8083, ContainerPort: 80},
			// An address that only the real host has.
			netns.PortMapping{Proto: proto, HostIP: netip.MustParseAddr("198.51.100.7"), HostPort: 8084, ContainerPort: 80})
	}
	pod, client := w.Pod("one", ports...), w.Pod("client")
	r, c := w.Setup(b, pod), w.Setup(b, client)
	w.Serve(pod.NetNS, "one", 80)
	gw4 := r.Gateways[0].String()
	for _, network := range []string{"tcp", "udp"} {
		// From the node, by each of its addresses.
		w.WantAnswer(w.NodeNS, network, "127.0.0.1:8080", "one", gw4)
		w.WantAnswer(w.NodeNS, network, "192.0.2.2:8080", "one", "192.0.2.2")
		w.WantAnswer(w.NodeNS, network, "[2001:db8::2]:8080", "one", "2001:db8::2")
		w.WantAnswer(w.NodeNS, network, nettest.HostPort(r.Gateways[0], 8080), "one", gw4)
		w.WantAnswer(w.NodeNS, network, "127.0.0.1:8081", "one", gw4)
		w.WantNothing(w.NodeNS, network, "192.0.2.2:8081")
		w.WantAnswer(w.NodeNS, network, "127.0.0.1:8082", "one", gw4)
		w.WantNothing(w.NodeNS, network, "[2001:db8::2]:8082")
		w.WantAnswer(w.NodeNS, network, "[2001:db8::2]:8083", "one", "2001:db8::2")
		w.WantAnswer(w.NodeNS, network, "198.51.100.7:8084", "one", "")
		// From outside: the client's address is kept.
		w.WantAnswer(w.Outside, network, "192.0.2.2:8080", "one", "192.0.2.1")
		w.WantAnswer(w.Outside, network, "[2001:db8::2]:8080", "one", "2001:db8::1")
		w.WantNothing(w.Outside, network, "192.0.2.2:8081")
		// From another pod, and from the pod itself (hairpin).
		w.WantAnswer(client.NetNS, network, "192.0.2.2:8080", "one", gw4)
		w.WantAnswer(client.NetNS, network, "[2001:db8::2]:8080", "one", r.Gateways[1].String())
		w.WantAnswer(client.NetNS, network, nettest.HostPort(c.Gateways[0], 8080), "one", gw4)
		w.WantAnswer(pod.NetNS, network, "192.0.2.2:8080", "one", gw4)
		w.WantAnswer(pod.NetNS, network, "[2001:db8::2]:8080", "one", r.Gateways[1].String())
		w.WantNothing(client.NetNS, network, "127.0.0.1:8080")
	}
	nettest.Must(t, b.Teardown(context.Background(), pod.ID))
	w.WantNothing(w.NodeNS, "tcp", "127.0.0.1:8080")
	w.WantNothing(w.Outside, "tcp", "192.0.2.2:8080")
}

func TestHostPortOnIPv6Loopback(t *testing.T) {
	w := newWorld(t)
	// With br_netfilter on IPv6 the kernel drops the answers: see routeIPv6Loopback.
	const brNetfilter = "/proc/sys/net/bridge/bridge-nf-call-ip6tables"
	nettest.Must(t, w.Thread.Do(func() error {
		if _, err := os.Stat(brNetfilter); err != nil {
			return nil // not loaded
		}
		return os.WriteFile(brNetfilter, []byte("0"), 0)
	}))
	b := w.bridge(Options{})
	pod := w.Pod("one", netns.PortMapping{Proto: "tcp", HostPort: 8080, ContainerPort: 80}, netns.PortMapping{Proto: "udp", HostPort: 8080, ContainerPort: 80})
	r := w.Setup(b, pod)
	w.Serve(pod.NetNS, "one", 80)
	w.Serve(w.NodeNS, "node", 81)
	for _, network := range []string{"tcp", "udp"} {
		w.WantAnswer(w.NodeNS, network, "[::1]:8080", "one", r.Gateways[1].String())
		w.WantAnswer(w.NodeNS, network, "[::1]:81", "node", "::1")
	}
}

func TestPodsCannotReachTheNodesLoopback(t *testing.T) {
	w := newWorld(t)
	b := w.bridge(Options{})
	pod := w.Pod("one")
	r := w.Setup(b, pod)
	w.Serve(w.NodeNS, "node", 9000)
	w.WantAnswer(w.NodeNS, "tcp", "127.0.0.1:9000", "node", "127.0.0.1")
	// A pod with CAP_NET_ADMIN could route 127.0.0.0/8 to the node.
	nettest.Must(t, netns.ApplySysctls(pod.NetNS, map[string]string{"net.ipv4.conf.all.route_localnet": "1"}))
	nettest.Must(t, netns.In(pod.NetNS, func() error { return routeLoopback(r.Gateways[0]) }))
	w.WantNothing(pod.NetNS, "tcp", "127.0.0.1:9000")
}

func TestPortConflicts(t *testing.T) {
	w := newWorld(t)
	b := w.bridge(Options{})
	ctx := context.Background()
	port := netns.PortMapping{Proto: "tcp", HostPort: 8080, ContainerPort: 80}
	first, second := w.Pod("first", port), w.Pod("second", port)
	w.Setup(b, first)
	if _, err := b.Setup(ctx, second); !errors.Is(err, netns.ErrPortTaken) {
		t.Errorf("second pod on the same port: %v, want ErrPortTaken", err)
	}
	if left := b.ipam.of(second.ID); len(left) != 0 {
		t.Errorf("the refused pod keeps addresses %v", left)
	}
	w.Setup(b, w.Pod("udp", netns.PortMapping{Proto: "udp", HostPort: 8080, ContainerPort: 80}))
	nettest.Must(t, b.Teardown(ctx, first.ID))
	w.Setup(b, second) // also: its half-made link of before is taken
	w.Serve(second.NetNS, "second", 80)
	w.WantAnswer(w.NodeNS, "tcp", "127.0.0.1:8080", "second", "")
}

func TestUDPClientFollowsThePort(t *testing.T) {
	w := newWorld(t)
	b := w.bridge(Options{})
	port := netns.PortMapping{Proto: "udp", HostPort: 5353, ContainerPort: 53}
	first, second := w.Pod("first", port), w.Pod("second", port)
	w.Serve(first.NetNS, "first", 53)
	w.Serve(second.NetNS, "second", 53)
	conn, err := netns.DialIn(context.Background(), w.Outside, "udp", "192.0.2.2:5353")
	nettest.Must(t, err)
	defer conn.Close()
	for _, pod := range []netns.Pod{first, second} {
		w.Setup(b, pod)
		if got := exchange(t, conn); got != pod.Name+" 192.0.2.1" {
			t.Errorf("the same client socket got %q, want an answer of %s", got, pod.Name)
		}
		nettest.Must(t, b.Teardown(context.Background(), pod.ID))
	}
}

func TestPortForwarder(t *testing.T) {
	w := newWorld(t)
	f := &nettest.Forwarder{Ports: map[netns.HostPort]bool{}}
	b := w.bridge(Options{Ports: f})
	ctx := context.Background()
	v6 := netip.MustParseAddr("::1")
	pod := w.Pod("one",
		netns.PortMapping{Proto: "tcp", HostPort: 8080, ContainerPort: 80},
		netns.PortMapping{Proto: "udp", HostIP: v6, HostPort: 53, ContainerPort: 53},
		netns.PortMapping{Proto: "sctp", HostPort: 9, ContainerPort: 9})
	r := w.Setup(b, pod)
	want := map[netns.HostPort]bool{
		{Proto: "tcp", HostPort: 8080, TargetIP: r.IPs[0], TargetPort: 80}:           true,
		{Proto: "udp", HostIP: v6, HostPort: 53, TargetIP: r.IPs[1], TargetPort: 53}: true,
	}
	if fmt.Sprint(f.Ports) != fmt.Sprint(want) {
		t.Errorf("forwarded %v, want %v", f.Ports, want)
	}
	// The server starts again, and so did the forwarder.
	clear(f.Ports)
	b2 := w.bridge(Options{Ports: f}, pod)
	if fmt.Sprint(f.Ports) != fmt.Sprint(want) {
		t.Errorf("after a restart forwarded %v, want %v", f.Ports, want)
	}
	nettest.Must(t, b2.Teardown(ctx, pod.ID))
	if len(f.Ports) != 0 {
		t.Errorf("after Teardown forwarded %v", f.Ports)
	}
	f.Fail = fmt.Errorf("bind: %w", netns.ErrPortTaken)
	failed := w.Pod("failed", netns.PortMapping{Proto: "tcp", HostPort: 8080, ContainerPort: 80})
	if _, err := b2.Setup(ctx, failed); !errors.Is(err, netns.ErrPortTaken) {
		t.Errorf("error %v, want that of the forwarder", err)
	}
	if got := w.nft(); got != emptyRules(t, w) {
		t.Errorf("a failed Setup left rules:\n%s", got)
	}
}
