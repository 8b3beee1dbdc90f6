package nettest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/subpod/subpod/netns"
)

// Families of a network under test.
type Families struct {
	Name   string
	V4, V6 bool
}

// AllFamilies are what every implementation must be able to do.
var AllFamilies = []Families{{"IPv4", true, false}, {"IPv6", false, true}, {"dual-stack", true, true}}

// Subnets for a network: room for 253 pods, or for 5.
func (f Families) Subnets(small bool) []netip.Prefix {
	v4, v6 := "10.99.0.0/24", "fd99::/120"
	if small {
		v4, v6 = "10.99.0.0/29", "fd99::/125"
	}
	var out []netip.Prefix
	if f.V4 {
		out = append(out, netip.MustParsePrefix(v4))
	}
	if f.V6 {
		out = append(out, netip.MustParsePrefix(v6))
	}
	return out
}

// Options of one network that the suite asks for.
type Options struct {
	World   *World
	Subnets []netip.Prefix
	Ports   netns.PortForwarder
}

// Suite runs every rule of netns.Network on an implementation. open makes a
// network on the state in World.Dir, as a server does when it starts; Reconcile is
// the suite's to call.
func Suite(t *testing.T, open func(testing.TB, Options) netns.Network) {
	for _, f := range AllFamilies {
		t.Run(f.Name, func(t *testing.T) {
			s := suite{f, open}
			for _, test := range []struct {
				name string
				run  func(*testing.T)
			}{
				{"Connect", s.connect},
				{"HostPorts", s.hostPorts},
				{"HostIP", s.hostIP},
				{"PortConflict", s.portConflict},
				{"Forwarder", s.forwarder},
				{"TeardownFrees", s.teardownFrees},
				{"Exhausted", s.exhausted},
				{"Restart", s.restart},
				{"Concurrency", s.concurrency},
				{"Bandwidth", s.bandwidth},
			} {
				t.Run(test.name, test.run)
			}
		})
	}
}

type suite struct {
	Families
	open func(testing.TB, Options) netns.Network
}

var background = context.Background()

// start makes a world with a network in it.
func (s suite) start(t *testing.T) (*World, netns.Network) {
	t.Helper()
	w := New(t)
	return w, s.reopen(t, Options{World: w, Subnets: s.Subnets(false)})
}

func (s suite) reopen(t *testing.T, o Options, live ...netns.Pod) netns.Network {
	t.Helper()
	n := s.open(t, o)
	Must(t, n.Reconcile(background, live))
	Must(t, n.Status(background))
	return n
}

// worlds are the outside's and the node's addresses of the network's families.
func (s suite) outside() (addrs []string) {
	if s.V4 {
		addrs = append(addrs, "192.0.2.1")
	}
	if s.V6 {
		addrs = append(addrs, "2001:db8::1")
	}
	return addrs
}

func (s suite) node() (addrs []netip.Addr) {
	if s.V4 {
		addrs = append(addrs, netip.MustParseAddr("192.0.2.2"))
	}
	if s.V6 {
		addrs = append(addrs, netip.MustParseAddr("2001:db8::2"))
	}
	return addrs
}

func (s suite) connect(t *testing.T) {
	w, n := s.start(t)
	one, two := w.Pod("one"), w.Pod("two")
	r1, r2 := w.Setup(n, one), w.Setup(n, two)
	again := w.Setup(n, one)
	if fmt.Sprint(again) != fmt.Sprint(r1) {
		t.Errorf("Setup again returned %+v, was %+v", again, r1)
	}
	if r1.Interface != "eth0" || r1.MTU == 0 || r1.MAC == "" || len(r1.IPs) != len(s.node()) || len(r1.Gateways) != len(r1.IPs) {
		t.Fatalf("result %+v", r1)
	}
	if r1.IPs[0].Is4() != s.V4 {
		t.Errorf("primary address %s of a pod with %s", r1.IPs[0], s.Name)
	}
	w.Serve(one.NetNS, "one", 80)
	w.Serve(w.Outside, "outside", 80)
	w.Serve(w.NodeNS, "node", 80)
	for i, ip := range r1.IPs {
		for _, network := range []string{"tcp", "udp"} {
			w.WantAnswer(two.NetNS, network, HostPort(ip, 80), "one", r2.IPs[i].String())
			w.WantAnswer(w.NodeNS, network, HostPort(ip, 80), "one", r1.Gateways[i].String())
			w.WantAnswer(two.NetNS, network, HostPort(r2.Gateways[i], 80), "node", r2.IPs[i].String())
			w.WantAnswer(two.NetNS, network, HostPort(netip.MustParseAddr(s.outside()[i]), 80), "outside", s.node()[i].String())
		}
	}
	if err := n.Teardown(background, PodID("nobody")); err != nil {
		t.Errorf("Teardown of an unknown pod: %v", err)
	}
	Must(t, n.Teardown(background, one.ID))
	Must(t, n.Teardown(background, one.ID))
}

// hostPorts: from outside, from the node, from another pod, from the pod itself.
func (s suite) hostPorts(t *testing.T) {
	w, n := s.start(t)
	web := w.Pod("web", both(8080, 80)...)
	other := w.Pod("other")
	w.Setup(n, web)
	w.Setup(n, other)
	w.Serve(web.NetNS, "web", 80)
	for i, node := range s.node() {
		at := HostPort(node, 8080)
		for _, network := range []string{"tcp", "udp"} {
			w.WantAnswer(w.Outside, network, at, "web", s.outside()[i])
			w.WantAnswer(w.NodeNS, network, at, "web", "")
			w.WantAnswer(other.NetNS, network, at, "web", "")
			w.WantAnswer(web.NetNS, network, at, "web", "") // hairpin
			if node.Is4() {
				w.WantAnswer(w.NodeNS, network, "127.0.0.1:8080", "web", "")
			}
		}
	}
	Must(t, n.Teardown(background, web.ID))
	for _, node := range s.node() {
		w.WantNothing(w.Outside, "tcp", HostPort(node, 8080))
	}
}

func both(host, container uint16) []netns.PortMapping {
	return []netns.PortMapping{
		{Proto: "tcp", HostPort: host, ContainerPort: container},
		{Proto: "udp", HostPort: host, ContainerPort: container},
	}
}

func (s suite) hostIP(t *testing.T) {
	w, n := s.start(t)
	node := s.node()[0]
	web := w.Pod("web", netns.PortMapping{Proto: "tcp", HostIP: node, HostPort: 8080, ContainerPort: 80})
	r := w.Setup(n, web)
	w.Serve(web.NetNS, "web", 80)
	w.WantAnswer(w.Outside, "tcp", HostPort(node, 8080), "web", "")
	w.WantNothing(w.NodeNS, "tcp", HostPort(r.Gateways[0], 8080))
	// The same port on another address is another port.
	second := w.Pod("second", netns.PortMapping{Proto: "tcp", HostIP: r.Gateways[0], HostPort: 8080, ContainerPort: 80})
	w.Setup(n, second)
	w.Serve(second.NetNS, "second", 80)
	w.WantAnswer(w.NodeNS, "tcp", HostPort(r.Gateways[0], 8080), "second", "")
}

func (s suite) portConflict(t *testing.T) {
	w, n := s.start(t)
	first := w.Pod("first", both(8080, 80)...)
	w.Setup(n, first)
	second := w.Pod("second", both(8080, 80)[:1]...)
	_, err := n.Setup(background, second)
	if !errors.Is(err, netns.ErrPortTaken) {
		t.Fatalf("error %v, want ErrPortTaken", err)
	}
	for _, word := range []string{"second", "first", "8080", "tcp", "another hostPort"} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("error %q does not say %q", err, word)
		}
	}
	Must(t, n.Teardown(background, first.ID))
	w.Setup(n, second)
	for _, bad := range []netns.PortMapping{{Proto: "icmp", HostPort: 1, ContainerPort: 1}, {Proto: "tcp", HostPort: 1}} {
		if _, err := n.Setup(background, w.Pod(fmt.Sprint("bad-", bad.Proto), bad)); !errors.Is(err, netns.ErrBadPod) {
			t.Errorf("%+v: error %v, want ErrBadPod", bad, err)
		}
	}
}

// Forwarder is a PortForwarder with a table of its own.
type Forwarder struct {
	mu    sync.Mutex
	Ports map[netns.HostPort]bool
	Fail  error
}

// Expose implements netns.PortForwarder.
func (f *Forwarder) Expose(_ context.Context, p netns.HostPort) (func(context.Context) error, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.Fail != nil {
		return nil, f.Fail
	}
	f.Ports[p] = true
	return func(context.Context) error {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.Ports, p)
		return nil
	}, nil
}

func (s suite) forwarder(t *testing.T) {
	w := New(t)
	f := &Forwarder{Ports: map[netns.HostPort]bool{}}
	n := s.reopen(t, Options{World: w, Subnets: s.Subnets(false), Ports: f})
	pod := w.Pod("web", append(both(8080, 80), netns.PortMapping{Proto: "sctp", HostPort: 9, ContainerPort: 9})...)
	r := w.Setup(n, pod)
	want := map[netns.HostPort]bool{
		{Proto: "tcp", HostPort: 8080, TargetIP: r.IPs[0], TargetPort: 80}: true,
		{Proto: "udp", HostPort: 8080, TargetIP: r.IPs[0], TargetPort: 80}: true,
	}
	same := func(when string, want map[netns.HostPort]bool) {
		t.Helper()
		if fmt.Sprint(f.Ports) != fmt.Sprint(want) {
			t.Errorf("%s: forwarded %v, want %v", when, f.Ports, want)
		}
	}
	same("after Setup", want)
	clear(f.Ports)
	n = s.reopen(t, Options{World: w, Subnets: s.Subnets(false), Ports: f}, pod)
	same("after a restart", want)
	Must(t, n.Teardown(background, pod.ID))
	same("after Teardown", map[netns.HostPort]bool{})

	before := w.Ruleset()
	f.Fail = fmt.Errorf("bind: %w", netns.ErrPortTaken)
	if _, err := n.Setup(background, w.Pod("refused", both(8080, 80)...)); !errors.Is(err, netns.ErrPortTaken) {
		t.Errorf("error %v, want that of the forwarder", err)
	}
	if after := w.Ruleset(); after != before {
		t.Errorf("a refused Setup left rules:\n%s\nbefore:\n%s", after, before)
	}
}

// teardownFrees: after a pod has come and gone, nothing tells of it. Teardown also
// works when the namespace has ended first; some CNI plugins then leave a rule.
func (s suite) teardownFrees(t *testing.T) {
	w, n := s.start(t)
	cycle := func(name string, unpinFirst bool) {
		pod := w.Pod(name, both(8080, 80)...)
		w.Setup(n, pod)
		if unpinFirst {
			Must(t, netns.Unpin(filepath.Dir(pod.NetNS)))
		}
		Must(t, n.Teardown(background, pod.ID))
		Must(t, netns.Unpin(filepath.Dir(pod.NetNS)))
	}
	cycle("warm-up", false)
	Eventually(t, "the warm-up's link goes", func() bool { return w.Veths() == 0 })
	before := w.Ruleset()
	cycle("one", false)
	Eventually(t, "links go", func() bool { return w.Veths() == 0 })
	if after := w.Ruleset(); after != before {
		t.Errorf("rules are left:\n%s\nbefore:\n%s", after, before)
	}
	cycle("two", true)
	Eventually(t, "the last link goes", func() bool { return w.Veths() == 0 })
}

// exhausted: a full subnet is an error, and one address that is freed is enough
// for the next pod.
func (s suite) exhausted(t *testing.T) {
	w := New(t)
	n := s.reopen(t, Options{World: w, Subnets: s.Subnets(true)})
	used := map[netip.Addr]string{}
	var pods []netns.Pod
	var err error
	for i := range 9 {
		pod := w.Pod(fmt.Sprint("p", i))
		var r netns.Result
		if r, err = n.Setup(background, pod); err != nil {
			break
		}
		pods = append(pods, pod)
		for _, ip := range r.IPs {
			if other := used[ip]; other != "" {
				t.Errorf("%s is given to %s and %s", ip, other, pod.Name)
			}
			used[ip] = pod.Name
		}
	}
	if err == nil || len(pods) < 4 {
		t.Fatalf("%d pods in a subnet of 8 addresses, error %v", len(pods), err)
	}
	Must(t, n.Teardown(background, pods[1].ID))
	Must(t, netns.Unpin(filepath.Dir(pods[1].NetNS)))
	w.Setup(n, w.Pod("late"))
}

// restart: a new server finds what the one that was killed has left.
func (s suite) restart(t *testing.T) {
	w, n := s.start(t)
	live, dead := w.Pod("live", both(8080, 80)...), w.Pod("dead", both(9090, 80)...)
	r := w.Setup(n, live)
	gone := w.Setup(n, dead)
	w.Serve(live.NetNS, "live", 80)
	Must(t, netns.Unpin(filepath.Dir(dead.NetNS)))

	n = s.reopen(t, Options{World: w, Subnets: s.Subnets(false)}, live)
	if again := w.Setup(n, live); fmt.Sprint(again.IPs) != fmt.Sprint(r.IPs) || again.MAC != r.MAC {
		t.Errorf("after a restart %+v, was %+v", again, r)
	}
	fresh := w.Pod("fresh", both(9090, 80)...)
	r3 := w.Setup(n, fresh) // takes the dead pod's port
	if slices.ContainsFunc(r3.IPs, func(a netip.Addr) bool { return slices.Contains(r.IPs, a) }) {
		t.Errorf("the new pod got the addresses %v of the living one", r3.IPs)
	}
	w.Serve(fresh.NetNS, "fresh", 80)
	for i, node := range s.node() {
		w.WantAnswer(w.Outside, "tcp", HostPort(node, 8080), "live", s.outside()[i])
		w.WantAnswer(w.Outside, "tcp", HostPort(node, 9090), "fresh", s.outside()[i])
		w.WantAnswer(fresh.NetNS, "tcp", HostPort(r.IPs[i], 80), "live", r3.IPs[i].String())
	}
	_ = gone
}

// concurrency: 12 pods at a time come, meet and go, twice.
func (s suite) concurrency(t *testing.T) {
	w, n := s.start(t)
	warm := w.Pod("warm-up", both(7000, 80)...)
	w.Setup(n, warm)
	Must(t, n.Teardown(background, warm.ID))
	before := w.Ruleset()
	for round := range 2 {
		pods := make([]netns.Pod, 12)
		results := make([]netns.Result, len(pods))
		for i := range pods {
			pods[i] = w.Pod(fmt.Sprint("p", round, "-", i), both(uint16(8000+i), 80)...)
			w.Serve(pods[i].NetNS, fmt.Sprint(i), 80)
		}
		each := func(f func(i int) error) {
			var wg sync.WaitGroup
			for i := range pods {
				wg.Go(func() {
					if err := f(i); err != nil {
						t.Errorf("pod %d: %v", i, err)
					}
				})
			}
			wg.Wait()
		}
		each(func(i int) (err error) {
			results[i], err = n.Setup(background, pods[i])
			return err
		})
		if t.Failed() {
			return
		}
		for i := range pods {
			w.WantAnswer(pods[(i+1)%len(pods)].NetNS, "tcp", HostPort(results[i].IPs[0], 80), fmt.Sprint(i), "")
			w.WantAnswer(w.Outside, "tcp", HostPort(s.node()[0], 8000+i), fmt.Sprint(i), "")
		}
		each(func(i int) error {
			return errors.Join(n.Teardown(background, pods[i].ID), netns.Unpin(filepath.Dir(pods[i].NetNS)))
		})
	}
	if after := w.Ruleset(); after != before {
		t.Errorf("rules are left:\n%s\nbefore:\n%s", after, before)
	}
}

func (s suite) bandwidth(t *testing.T) {
	w, n := s.start(t)
	free, slow := w.Pod("free"), w.Pod("slow")
	slow.IngressRate, slow.EgressRate = 80e6, 80e6
	w.Setup(n, free)
	r := w.Setup(n, slow)
	// 4 MiB at 80 Mbit/s take 0.42 s; the bucket may hold some of them.
	in := w.Throughput(free.NetNS, slow.NetNS, r.IPs[0])
	out := w.Throughput(slow.NetNS, w.Outside, netip.MustParseAddr(s.outside()[0]))
	for what, got := range map[string]float64{"to": in, "from": out} {
		if got > 25e6 {
			t.Errorf("%.0f MB/s %s a pod that is limited to 10", got/1e6, what)
		}
	}
}

// Ruleset returns the node's packet filter rules without counters and handles.
func (w *World) Ruleset() string {
	w.T.Helper()
	var out []byte
	Must(w.T, w.Thread.Do(func() (err error) {
		out, err = exec.Command("nft", "--stateless", "list", "ruleset").Output()
		return err
	}))
	return string(out)
}
