package bridge

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"

	"github.com/subpod/subpod/netns"
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
	pod, client := w.pod("one", ports...), w.pod("client")
	r, c := w.setup(b, pod), w.setup(b, client)
	w.serve(pod.NetNS, "one", 80)
	gw4 := r.Gateways[0].String()
	for _, network := range []string{"tcp", "udp"} {
		// From the node, by each of its addresses.
		w.wantAnswer(w.nodeNS, network, "127.0.0.1:8080", "one", gw4)
		w.wantAnswer(w.nodeNS, network, "192.0.2.2:8080", "one", "192.0.2.2")
		w.wantAnswer(w.nodeNS, network, "[2001:db8::2]:8080", "one", "2001:db8::2")
		w.wantAnswer(w.nodeNS, network, hostPort(r.Gateways[0], 8080), "one", gw4)
		w.wantAnswer(w.nodeNS, network, "127.0.0.1:8081", "one", gw4)
		w.wantNothing(w.nodeNS, network, "192.0.2.2:8081")
		w.wantAnswer(w.nodeNS, network, "127.0.0.1:8082", "one", gw4)
		w.wantNothing(w.nodeNS, network, "[2001:db8::2]:8082")
		w.wantAnswer(w.nodeNS, network, "[2001:db8::2]:8083", "one", "2001:db8::2")
		w.wantAnswer(w.nodeNS, network, "198.51.100.7:8084", "one", "")
		// From outside: the client's address is kept.
		w.wantAnswer(w.outside, network, "192.0.2.2:8080", "one", "192.0.2.1")
		w.wantAnswer(w.outside, network, "[2001:db8::2]:8080", "one", "2001:db8::1")
		w.wantNothing(w.outside, network, "192.0.2.2:8081")
		// From another pod, and from the pod itself (hairpin).
		w.wantAnswer(client.NetNS, network, "192.0.2.2:8080", "one", gw4)
		w.wantAnswer(client.NetNS, network, "[2001:db8::2]:8080", "one", r.Gateways[1].String())
		w.wantAnswer(client.NetNS, network, hostPort(c.Gateways[0], 8080), "one", gw4)
		w.wantAnswer(pod.NetNS, network, "192.0.2.2:8080", "one", gw4)
		w.wantAnswer(pod.NetNS, network, "[2001:db8::2]:8080", "one", r.Gateways[1].String())
		w.wantNothing(client.NetNS, network, "127.0.0.1:8080")
	}
	must(t, b.Teardown(context.Background(), pod.ID))
	w.wantNothing(w.nodeNS, "tcp", "127.0.0.1:8080")
	w.wantNothing(w.outside, "tcp", "192.0.2.2:8080")
}

func TestHostPortOnIPv6Loopback(t *testing.T) {
	w := newWorld(t)
	// With br_netfilter on IPv6 the kernel drops the answers: see routeIPv6Loopback.
	const brNetfilter = "/proc/sys/net/bridge/bridge-nf-call-ip6tables"
	must(t, w.node.Do(func() error {
		if _, err := os.Stat(brNetfilter); err != nil {
			return nil // not loaded
		}
		return os.WriteFile(brNetfilter, []byte("0"), 0)
	}))
	b := w.bridge(Options{})
	pod := w.pod("one", netns.PortMapping{Proto: "tcp", HostPort: 8080, ContainerPort: 80}, netns.PortMapping{Proto: "udp", HostPort: 8080, ContainerPort: 80})
	r := w.setup(b, pod)
	w.serve(pod.NetNS, "one", 80)
	w.serve(w.nodeNS, "node", 81)
	for _, network := range []string{"tcp", "udp"} {
		w.wantAnswer(w.nodeNS, network, "[::1]:8080", "one", r.Gateways[1].String())
		w.wantAnswer(w.nodeNS, network, "[::1]:81", "node", "::1")
	}
}

func TestPodsCannotReachTheNodesLoopback(t *testing.T) {
	w := newWorld(t)
	b := w.bridge(Options{})
	pod := w.pod("one")
	r := w.setup(b, pod)
	w.serve(w.nodeNS, "node", 9000)
	w.wantAnswer(w.nodeNS, "tcp", "127.0.0.1:9000", "node", "127.0.0.1")
	// A pod with CAP_NET_ADMIN could route 127.0.0.0/8 to the node.
	must(t, netns.ApplySysctls(pod.NetNS, map[string]string{"net.ipv4.conf.all.route_localnet": "1"}))
	must(t, netns.In(pod.NetNS, func() error { return routeLoopback(r.Gateways[0]) }))
	w.wantNothing(pod.NetNS, "tcp", "127.0.0.1:9000")
}

func TestPortConflicts(t *testing.T) {
	w := newWorld(t)
	b := w.bridge(Options{})
	ctx := context.Background()
	port := netns.PortMapping{Proto: "tcp", HostPort: 8080, ContainerPort: 80}
	first, second := w.pod("first", port), w.pod("second", port)
	w.setup(b, first)
	if _, err := b.Setup(ctx, second); !errors.Is(err, netns.ErrPortTaken) {
		t.Errorf("second pod on the same port: %v, want ErrPortTaken", err)
	}
	if left := b.ipam.of(second.ID); len(left) != 0 {
		t.Errorf("the refused pod keeps addresses %v", left)
	}
	w.setup(b, w.pod("udp", netns.PortMapping{Proto: "udp", HostPort: 8080, ContainerPort: 80}))
	must(t, b.Teardown(ctx, first.ID))
	w.setup(b, second) // also: its half-made link of before is taken
	w.serve(second.NetNS, "second", 80)
	w.wantAnswer(w.nodeNS, "tcp", "127.0.0.1:8080", "second", "")
}

func TestUDPClientFollowsThePort(t *testing.T) {
	w := newWorld(t)
	b := w.bridge(Options{})
	port := netns.PortMapping{Proto: "udp", HostPort: 5353, ContainerPort: 53}
	first, second := w.pod("first", port), w.pod("second", port)
	w.serve(first.NetNS, "first", 53)
	w.serve(second.NetNS, "second", 53)
	conn, err := netns.DialIn(context.Background(), w.outside, "udp", "192.0.2.2:5353")
	must(t, err)
	defer conn.Close()
	for _, pod := range []netns.Pod{first, second} {
		w.setup(b, pod)
		if got := exchange(t, conn); got != pod.Name+" 192.0.2.1" {
			t.Errorf("the same client socket got %q, want an answer of %s", got, pod.Name)
		}
		must(t, b.Teardown(context.Background(), pod.ID))
	}
}

// forwarder is a port forwarder with a table of its own, as rootlesskit's outlives
// the server.
type forwarder struct {
	mu    sync.Mutex
	ports map[HostPort]bool
	fail  error
}

func (f *forwarder) Expose(_ context.Context, p HostPort) (func(context.Context) error, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return nil, f.fail
	}
	f.ports[p] = true
	return func(context.Context) error {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.ports, p)
		return nil
	}, nil
}

func (f *forwarder) Keep(_ context.Context, live []HostPort) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for p := range f.ports {
		if !slices.Contains(live, p) {
			delete(f.ports, p)
		}
	}
	return nil
}

func TestPortForwarder(t *testing.T) {
	w := newWorld(t)
	f := &forwarder{ports: map[HostPort]bool{}}
	b := w.bridge(Options{Ports: f})
	ctx := context.Background()
	v6 := netip.MustParseAddr("::1")
	pod := w.pod("one",
		netns.PortMapping{Proto: "tcp", HostPort: 8080, ContainerPort: 80},
		netns.PortMapping{Proto: "udp", HostIP: v6, HostPort: 53, ContainerPort: 53},
		netns.PortMapping{Proto: "sctp", HostPort: 9, ContainerPort: 9})
	r := w.setup(b, pod)
	want := map[HostPort]bool{
		{"tcp", netip.Addr{}, 8080, r.IPs[0], 80}: true,
		{"udp", v6, 53, r.IPs[1], 53}:             true,
	}
	if fmt.Sprint(f.ports) != fmt.Sprint(want) {
		t.Errorf("forwarded %v, want %v", f.ports, want)
	}
	// The server starts again; meanwhile another pod's forwarding was left behind.
	f.ports[HostPort{"tcp", netip.Addr{}, 1, r.IPs[0], 1}] = true
	b2 := w.bridge(Options{Ports: f}, pod)
	if fmt.Sprint(f.ports) != fmt.Sprint(want) {
		t.Errorf("after a restart forwarded %v, want %v", f.ports, want)
	}
	must(t, b2.Teardown(ctx, pod.ID))
	if len(f.ports) != 0 {
		t.Errorf("after Teardown forwarded %v", f.ports)
	}
	f.fail = fmt.Errorf("bind: %w", netns.ErrPortTaken)
	failed := w.pod("failed", netns.PortMapping{Proto: "tcp", HostPort: 8080, ContainerPort: 80})
	if _, err := b2.Setup(ctx, failed); !errors.Is(err, netns.ErrPortTaken) {
		t.Errorf("error %v, want that of the forwarder", err)
	}
	if got := w.nft(); got != emptyRules(t, w) {
		t.Errorf("a failed Setup left rules:\n%s", got)
	}
}
