package bridge

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/tests/nettest"
)

// claims lists the address claims on disk: address → pod.
func (w *world) claims() map[string]string {
	w.T.Helper()
	dir := filepath.Join(w.Dir, "run", "addresses")
	entries, err := os.ReadDir(dir)
	nettest.Must(w.T, err)
	out := map[string]string{}
	for _, e := range entries {
		out[e.Name()], err = os.Readlink(filepath.Join(dir, e.Name()))
		nettest.Must(w.T, err)
	}
	return out
}

func TestServerRestart(t *testing.T) {
	w := newWorld(t)
	b := w.bridge(Options{})
	live := w.Pod("live", netns.PortMapping{Proto: "tcp", HostPort: 8080, ContainerPort: 80})
	dead := w.Pod("dead", netns.PortMapping{Proto: "tcp", HostPort: 8081, ContainerPort: 80})
	r := w.Setup(b, live)
	w.Setup(b, dead)
	w.Serve(live.NetNS, "live", 80)
	conn, err := netns.DialIn(context.Background(), w.Outside, "udp", "192.0.2.2:1")
	nettest.Must(t, err)
	conn.Close()

	// The server is killed, the node lives. While it is away, somebody flushes the
	// rules and takes the pod's link out of the bridge.
	rules := w.nft()
	nettest.Must(t, b.Close())
	nettest.Must(t, w.Thread.Do(func() error {
		out, err := exec.Command("sh", "-c", "nft flush ruleset && ip link set "+vethName(live.ID)+" nomaster").CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}))
	b2 := w.bridge(Options{}, live)
	nettest.Must(t, b2.Status(context.Background()))
	w.WantAnswer(w.NodeNS, "tcp", "127.0.0.1:8080", "live", "")
	w.WantAnswer(w.Outside, "tcp", "192.0.2.2:8080", "live", "192.0.2.1")
	if got := w.Setup(b2, live); fmt.Sprint(got) != fmt.Sprint(r) {
		t.Errorf("Setup after the restart gave %+v, before %+v", got, r)
	}
	for addr, pod := range w.claims() {
		if pod != live.ID {
			t.Errorf("%s is still claimed by pod %s", addr, pod)
		}
	}
	if n := w.vethCount(); n != 1 {
		t.Errorf("%d links of pods, want only that of the live one", n)
	}
	if now := w.nft(); now == rules || strings.Contains(now, "8081") || !strings.Contains(now, "8080") {
		t.Errorf("rules after the restart:\n%s", now)
	}
	// New pods do not get a live pod's address or port.
	next := w.Pod("next", netns.PortMapping{Proto: "tcp", HostPort: 8080, ContainerPort: 80})
	if _, err := b2.Setup(context.Background(), next); !errors.Is(err, netns.ErrPortTaken) {
		t.Errorf("port of a pod from before the restart: %v, want ErrPortTaken", err)
	}
}

func TestLostClaimsAreReadFromThePod(t *testing.T) {
	w := newWorld(t)
	pod := w.Pod("one")
	r := w.Setup(w.bridge(Options{}), pod)
	nettest.Must(t, os.RemoveAll(filepath.Join(w.Dir, "run")))
	b := w.bridge(Options{}, pod)
	if got := b.ipam.of(pod.ID); !slices.Equal(got, r.IPs) {
		t.Errorf("addresses %v, the pod uses %v", got, r.IPs)
	}
}

func TestNodeReboot(t *testing.T) {
	w := newWorld(t)
	w.Setup(w.bridge(Options{}), w.Pod("old"))
	fresh := newWorld(t)
	nettest.Must(t, os.RemoveAll(filepath.Join(fresh.Dir, "run")))
	nettest.Must(t, os.Rename(filepath.Join(w.Dir, "run"), filepath.Join(fresh.Dir, "run")))
	b := fresh.bridge(Options{})
	nettest.Must(t, b.Status(context.Background()))
	if c := fresh.claims(); len(c) != 0 {
		t.Errorf("claims of pods that died with the node: %v", c)
	}
	pod := fresh.Pod("new")
	fresh.Setup(b, pod)
	fresh.Serve(fresh.Outside, "outside", 80)
	fresh.WantAnswer(pod.NetNS, "tcp", "192.0.2.1:80", "outside", "192.0.2.2")
}

// A crash may come after any step of Setup. Whatever was made by then, Reconcile
// and another Setup or a Teardown must cope with it.
func TestCrashAtEveryStep(t *testing.T) {
	ports := []netns.PortMapping{{Proto: "tcp", HostPort: 8080, ContainerPort: 80}}
	for steps := range 4 {
		for _, then := range []string{"Setup", "Teardown", "Reconcile"} {
			t.Run(fmt.Sprintf("%d steps, then %s", steps, then), func(t *testing.T) {
				w := newWorld(t)
				b := w.bridge(Options{})
				pod := w.Pod("one", ports...)
				partialSetup(t, b, pod, steps)
				live := []netns.Pod{pod}
				if then == "Reconcile" {
					live = nil
				}
				b = w.bridge(Options{}, live...)
				switch then {
				case "Setup":
					w.Setup(b, pod)
					w.Serve(pod.NetNS, "one", 80)
					w.WantAnswer(w.NodeNS, "tcp", "127.0.0.1:8080", "one", "")
					nettest.Must(t, b.Teardown(context.Background(), pod.ID))
				case "Teardown":
					nettest.Must(t, b.Teardown(context.Background(), pod.ID))
				}
				if c := w.claims(); len(c) != 0 {
					t.Errorf("claims are left: %v", c)
				}
				if rules := w.nft(); strings.Contains(rules, "8080") {
					t.Errorf("rules are left:\n%s", rules)
				}
			})
		}
	}
}

// partialSetup does the first steps of Setup and forgets about them.
func partialSetup(t *testing.T, b *Bridge, pod netns.Pod, steps int) {
	if steps == 0 { // killed between the claims of two families
		nettest.Must(t, os.Symlink(pod.ID, filepath.Join(b.ipam.dir, addrAt(b.Subnets()[0], 77).String())))
		return
	}
	addrs, err := b.ipam.claim(pod.ID, b.Subnets())
	nettest.Must(t, err)
	bridge := b.device.now()
	prefixes, err := b.device.withSubnets(addrs)
	nettest.Must(t, err)
	if steps > 1 {
		_, err := b.links.attach(pod, bridge.index, bridge.mtu, macOf(addrs[0]))
		nettest.Must(t, err)
	}
	if steps > 2 {
		_, err := b.links.address(t.Context(), pod, wanted{mac: macOf(addrs[0]), addrs: prefixes, bridge: bridge})
		nettest.Must(t, err)
		nettest.Must(t, b.rules.add(elementsOf(pod.Ports, addrs)))
	}
}

func TestSetPodCIDR(t *testing.T) {
	w := newWorld(t)
	b := w.bridge(Options{})
	ctx := context.Background()
	old := w.Pod("old")
	r := w.Setup(b, old)
	cidr := []netip.Prefix{netip.MustParsePrefix("fd00:10:244::/64"), netip.MustParsePrefix("10.244.3.0/24")}
	nettest.Must(t, b.SetPodCIDR(ctx, cidr))
	nettest.Must(t, b.SetPodCIDR(ctx, nil)) // kubelet without a pod CIDR says so
	fresh := w.Pod("fresh")
	r2 := w.Setup(b, fresh)
	if !cidr[1].Contains(r2.IPs[0]) || !cidr[0].Contains(r2.IPs[1]) {
		t.Errorf("addresses %v, want in %v", r2.IPs, cidr)
	}
	w.Serve(old.NetNS, "old", 80)
	w.Serve(w.Outside, "outside", 80)
	check := func() {
		t.Helper()
		w.WantAnswer(fresh.NetNS, "tcp", nettest.HostPort(r.IPs[0], 80), "old", "")
		w.WantAnswer(old.NetNS, "tcp", "192.0.2.1:80", "outside", "192.0.2.2")
		w.WantAnswer(fresh.NetNS, "tcp", "192.0.2.1:80", "outside", "192.0.2.2")
	}
	check()
	b = w.bridge(Options{}, old, fresh) // the CIDR is remembered, the old subnet still served
	check()
	third := w.Pod("third")
	if r3 := w.Setup(b, third); !cidr[1].Contains(r3.IPs[0]) {
		t.Errorf("after a restart address %v, want in %v", r3.IPs, cidr)
	}
	b = w.bridge(Options{}, fresh, third)
	if served := b.device.now().served; slices.Contains(served, netip.PrefixFrom(r.IPs[0], 16).Masked()) {
		t.Errorf("the old subnet is still on the bridge without a pod in it: %v", served)
	}
	for _, bad := range []string{"10.0.0.1/32", "::ffff:10.0.0.0/104"} {
		if err := b.SetPodCIDR(ctx, []netip.Prefix{netip.MustParsePrefix(bad)}); err == nil {
			t.Errorf("subnet %s was accepted", bad)
		}
	}
}

func TestSubnetRunsOut(t *testing.T) {
	w := newWorld(t)
	b := w.bridge(Options{Subnets: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/29")}})
	var last netns.Pod
	seen := map[netip.Addr]bool{}
	for i := range 5 { // of 8: network, gateway, broadcast
		last = w.Pod(fmt.Sprint(i))
		r := w.Setup(b, last)
		if len(r.IPs) != 1 || seen[r.IPs[0]] {
			t.Fatalf("addresses %v after %v", r.IPs, seen)
		}
		seen[r.IPs[0]] = true
	}
	if _, err := b.Setup(context.Background(), w.Pod("too many")); !errors.Is(err, netns.ErrNoAddress) {
		t.Errorf("error %v, want ErrNoAddress", err)
	}
	nettest.Must(t, b.Teardown(context.Background(), last.ID))
	w.Setup(b, w.Pod("again"))
}

func TestPodWithoutIPv6(t *testing.T) {
	w := newWorld(t)
	b := w.bridge(Options{})
	pod := w.Pod("one")
	nettest.Must(t, netns.ApplySysctls(pod.NetNS, map[string]string{"net.ipv6.conf.all.disable_ipv6": "1", "net.ipv6.conf.default.disable_ipv6": "1"}))
	if r := w.Setup(b, pod); len(r.IPs) != 1 || !r.IPs[0].Is4() || len(r.Gateways) != 1 {
		t.Errorf("result %+v, want IPv4 only", r)
	}
}

// Killed with SIGKILL at any moment, the claims must stay right: the child claims
// and reports without end, and is killed in the middle.
func TestClaimsSurviveKill(t *testing.T) {
	dir := t.TempDir()
	subnets := []netip.Prefix{netip.MustParsePrefix("10.9.0.0/20"), netip.MustParsePrefix("fd09::/64")}
	reported := map[string]string{} // address → pod, as told before the kill
	for round := range 5 {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestClaimForever$")
		cmd.Env = append(os.Environ(), "CLAIM_DIR="+dir, fmt.Sprint("CLAIM_ROUND=", round))
		out, err := cmd.StdoutPipe()
		nettest.Must(t, err)
		nettest.Must(t, cmd.Start())
		lines := bufio.NewScanner(out)
		for range 100 + 37*round {
			if !lines.Scan() {
				t.Fatal("the claiming process ended by itself")
			}
			f := strings.Fields(lines.Text())
			for _, a := range f[1:] {
				if o, taken := reported[a]; taken {
					t.Fatalf("%s was given to %s and to %s", a, o, f[0])
				}
				reported[a] = f[0]
			}
		}
		nettest.Must(t, cmd.Process.Kill())
		_ = cmd.Wait()
		// What it told between the last line read and the kill.
		m, err := openIPAM(dir)
		nettest.Must(t, err)
		for a, pod := range m.owner {
			reported[a.String()] = pod
		}
	}
	m, err := openIPAM(dir)
	nettest.Must(t, err)
	for a, pod := range reported {
		if got := m.owner[netip.MustParseAddr(a)]; got != pod {
			t.Errorf("%s belongs to %q, was given to %q", a, got, pod)
		}
	}
	// A claim cut in two is completed.
	for pod := range m.byPod {
		if addrs, err := m.claim(pod, subnets); err != nil || len(addrs) != 2 {
			t.Errorf("claim of %s: %v, %v", pod, addrs, err)
		}
	}
	nettest.Must(t, m.releaseAllBut(nil))
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("%d claims are left", len(left))
	}
}

// TestClaimForever is the child of TestClaimsSurviveKill.
func TestClaimForever(t *testing.T) {
	dir := os.Getenv("CLAIM_DIR")
	if dir == "" {
		t.Skip("runs only as the child of TestClaimsSurviveKill")
	}
	m, err := openIPAM(dir)
	nettest.Must(t, err)
	for i := 0; ; i++ {
		pod := fmt.Sprint("pod-", os.Getenv("CLAIM_ROUND"), "-", i)
		addrs, err := m.claim(pod, []netip.Prefix{netip.MustParsePrefix("10.9.0.0/20"), netip.MustParsePrefix("fd09::/64")})
		nettest.Must(t, err)
		if _, err := fmt.Println(pod, addrs[0], addrs[1]); err != nil {
			os.Exit(1)
		}
	}
}

func TestEightTimesHundredPods(t *testing.T) {
	w := newWorld(t)
	b := w.bridge(Options{})
	ctx := context.Background()
	before := w.nft()
	var mu sync.Mutex
	inUse := map[netip.Addr]string{}
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			for i := range 100 {
				name := fmt.Sprint(worker, "-", i)
				if err := oneLife(ctx, w, b, name, uint16(10000+worker*100+i), &mu, inUse); err != nil {
					t.Errorf("pod %s: %v", name, err)
					return
				}
			}
		})
	}
	wg.Wait()
	if c := w.claims(); len(c) != 0 {
		t.Errorf("claims are left: %v", c)
	}
	if after := w.nft(); after != before {
		t.Errorf("rules are left:\n%s", after)
	}
	if left := b.pods.ids(); len(left) != 0 {
		t.Errorf("%d pods are left in memory", len(left))
	}
	nettest.Eventually(t, "all links go with their namespaces", func() bool { return w.vethCount() == 0 })
	if left, _ := os.ReadDir(filepath.Join(w.Dir, "pods")); len(left) != 0 {
		t.Errorf("%d pin directories are left", len(left))
	}
}

func oneLife(ctx context.Context, w *world, b *Bridge, name string, port uint16, mu *sync.Mutex, inUse map[netip.Addr]string) error {
	dir := filepath.Join(w.Dir, "pods", name)
	pins, err := netns.Pin(ctx, netns.PinSpec{Dir: dir, Net: true, IPC: true, UTS: true, Hostname: name})
	if err != nil {
		return err
	}
	pod := netns.Pod{ID: nettest.PodID(name), NetNS: pins.Net, Ports: []netns.PortMapping{{Proto: "tcp", HostPort: port, ContainerPort: 80}}}
	r, err := b.Setup(ctx, pod)
	if err != nil {
		return err
	}
	mu.Lock()
	for _, a := range r.IPs {
		if o, taken := inUse[a]; taken {
			err = fmt.Errorf("address %s is that of pod %s", a, o)
		}
		inUse[a] = name
	}
	mu.Unlock()
	if err != nil {
		return err
	}
	mu.Lock()
	for _, a := range r.IPs {
		delete(inUse, a)
	}
	mu.Unlock()
	return errors.Join(b.Teardown(ctx, pod.ID), netns.Unpin(dir), os.Remove(dir))
}

func TestBandwidth(t *testing.T) {
	w := newWorld(t)
	b := w.bridge(Options{})
	pod := w.Pod("slow")
	pod.IngressRate, pod.EgressRate = 80_000_000, 40_000_000 // 10 and 5 MB/s
	r := w.Setup(b, pod)
	for _, x := range []struct {
		from, to, addr string
		rate           float64
	}{{w.NodeNS, pod.NetNS, r.IPs[0].String(), 10e6}, {pod.NetNS, w.NodeNS, r.Gateways[0].String(), 5e6}} {
		// A busy machine may be slower than the limit, but not each time.
		best := 0.0
		for try := 0; try < 20 && best < x.rate*0.5; try++ {
			best = throughput(t, x.from, x.to, x.addr)
		}
		if best > x.rate*1.25 || best < x.rate*0.5 {
			t.Errorf("%.1f MB/s to %s, limited to %.1f", best/1e6, x.addr, x.rate/1e6)
		}
	}
}
