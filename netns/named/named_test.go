package named

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/netns/bridge"
	"github.com/subpod/subpod/tests/nettest"
	"github.com/subpod/subpod/tests/nstest"
)

func TestMain(m *testing.M) {
	netns.Dispatch()
	os.Exit(nstest.Main(m, nstest.Options{Net: true, PID: true, IPC: true, UTS: true, IDs: 65536}))
}

// shelf is a Holder in this process.
type shelf map[string]*os.File

func (s shelf) Take(name string) *os.File { f := s[name]; delete(s, name); return f }
func (s shelf) Keep(string, int) error    { return nil }
func (s shelf) Drop(string) error         { return nil }
func (s shelf) DropRest() error           { return nil }

// open opens the networks on the world's state, as a server does at start.
func open(t *testing.T, w *nettest.World, live ...netns.Pod) *Networks {
	t.Helper()
	b, err := bridge.New(bridge.Options{Thread: w.Thread, StateDir: filepath.Join(w.Dir, "state"), RunDir: filepath.Join(w.Dir, "run"),
		Subnets: []netip.Prefix{netip.MustParsePrefix("10.88.0.0/24"), netip.MustParsePrefix("fd88::/64")}})
	nettest.Must(t, err)
	n, err := New(Options{Base: b, Bridge: b, Thread: w.Thread, Held: shelf{}, Upstreams: func() []netip.Addr { return nil },
		StateDir: filepath.Join(w.Dir, "networks"), RunDir: filepath.Join(w.Dir, "run", "networks")})
	nettest.Must(t, err)
	t.Cleanup(func() { stop(n) })
	nettest.Must(t, n.Reconcile(context.Background(), live))
	return n
}

// stop is the end of a server.
func stop(n *Networks) {
	n.speaker.silence(&n.base)
	n.Bridge.Close()
	for _, w := range n.networks {
		n.speaker.silence(&w.listeners)
		if w.bridge != nil {
			w.bridge.Close()
		}
	}
}

func pod(w *nettest.World, name string, networks ...string) netns.Pod {
	p := w.Pod(name)
	p.Names = []string{name}
	for _, n := range networks {
		p.Attachments = append(p.Attachments, netns.Attachment{Network: n, Aliases: []string{"any"}})
	}
	return p
}

// lookup asks a name server from a pod, and returns the addresses or the code.
func lookup(t *testing.T, from netns.Pod, server netip.Addr, name string, kind dnsmessage.Type) string {
	t.Helper()
	return lookupWithin(t, time.Minute, from, server, name, kind)
}

// lookupWithin is lookup, where a silence that long is what is expected.
func lookupWithin(t *testing.T, patience time.Duration, from netns.Pod, server netip.Addr, name string, kind dnsmessage.Type) string {
	t.Helper()
	question := dnsmessage.Question{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET}
	ask := dnsmessage.Message{Header: dnsmessage.Header{ID: 7, RecursionDesired: true}, Questions: []dnsmessage.Question{question}}
	raw, err := ask.Pack()
	nettest.Must(t, err)
	c, err := netns.DialIn(t.Context(), from.NetNS, "udp", netip.AddrPortFrom(server, dnsPort).String())
	if err != nil {
		return "silence" // there is no way to it
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	_, err = c.Write(raw)
	nettest.Must(t, err)
	buf := make([]byte, 4096)
	size, err := c.Read(buf)
	if err != nil {
		return "silence"
	}
	var m dnsmessage.Message
	nettest.Must(t, m.Unpack(buf[:size]))
	if m.RCode != dnsmessage.RCodeSuccess {
		return m.RCode.String()
	}
	var out []string
	for _, r := range m.Answers {
		switch b := r.Body.(type) {
		case *dnsmessage.AResource:
			out = append(out, netip.AddrFrom4(b.A).String())
		case *dnsmessage.AAAAResource:
			out = append(out, netip.AddrFrom16(b.AAAA).String())
		}
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// TestNetworks: pods of a network reach each other and find each other by name; those of
// others do neither, before and after the server has been started again.
func TestNetworks(t *testing.T) {
	w := nettest.New(t)
	n := open(t, w)
	for _, c := range []Config{{Name: "front", Subnets: []netip.Prefix{netip.MustParsePrefix("10.91.0.0/24"), netip.MustParsePrefix("fd91::/64")}}, {Name: "back", Internal: true}} {
		_, err := n.Create(c, false)
		nettest.Must(t, err)
	}
	plain, front, both, back := pod(w, "plain"), pod(w, "front"), pod(w, "both", "back", "front"), pod(w, "back", "back")
	front.Attachments = []netns.Attachment{{Network: "front", Aliases: []string{"any"}, Addresses: []netip.Addr{netip.MustParseAddr("10.91.0.7")}}}
	live := []netns.Pod{plain, front, both, back}
	results := map[string]netns.Result{}
	for _, p := range live {
		results[p.Name] = w.Setup(n, p)
		w.Serve(p.NetNS, p.Name, 7000)
	}
	if r := results["both"]; r.Interface != "eth0" || len(r.Others) != 1 || r.Others[0].Interface != "eth1" || len(r.Gateways) != 2 || len(r.Nameservers) != 3 {
		t.Errorf("a pod of two networks: %+v", r)
	}
	server := func(name string) netip.Addr { return results[name].Nameservers[0] }
	check := func(t *testing.T) {
		at := func(a netip.Addr) string { return nettest.HostPort(a, 7000) }
		viaFront, viaBack := results["both"].Others[0].IPs[0], results["both"].IPs[0]
		w.WantAnswer(front.NetNS, "tcp", at(viaFront), "both", "10.91.0.7")
		w.WantAnswer(front.NetNS, "tcp", at(results["both"].Others[0].IPs[1]), "both", "")
		w.WantAnswer(back.NetNS, "tcp", at(viaBack), "both", "")
		w.WantAnswer(front.NetNS, "tcp", "192.0.2.1:7000", "outside", "192.0.2.2")
		w.WantNothing(back.NetNS, "tcp", "192.0.2.1:7000")
		for _, from := range []netns.Pod{plain, front, back} {
			for _, to := range live {
				if from.Name != to.Name && to.Name != "both" {
					w.WantNothing(from.NetNS, "tcp", at(results[to.Name].IPs[0]))
				}
			}
		}
		for _, c := range []struct {
			from   netns.Pod
			server netip.Addr
			name   string
			kind   dnsmessage.Type
			want   string
		}{
			{front, server("front"), "both.", dnsmessage.TypeA, viaFront.String()},
			{front, server("front"), "both.", dnsmessage.TypeAAAA, results["both"].Others[0].IPs[1].String()},
			{front, server("front"), "any.", dnsmessage.TypeA, viaFront.String() + " 10.91.0.7"},
			{front, server("front"), "back.subpod.internal.", dnsmessage.TypeA, "RCodeNameError"},
			{back, server("back"), "both.", dnsmessage.TypeA, viaBack.String()},
			{back, server("back"), "both.", dnsmessage.TypeAAAA, ""},
			{back, server("back"), "example.org.", dnsmessage.TypeA, "RCodeNameError"},
			{back, server("front"), "front.", dnsmessage.TypeA, "silence"},
			{plain, server("plain"), "front.subpod.internal.", dnsmessage.TypeA, "RCodeNameError"},
			{plain, server("front"), "front.", dnsmessage.TypeA, "silence"},
			{both, server("both"), "front.", dnsmessage.TypeA, "10.91.0.7"},
		} {
			patience := time.Minute
			if c.want == "silence" {
				patience = time.Second
			}
			if got := lookupWithin(t, patience, c.from, c.server, c.name, c.kind); got != c.want {
				t.Errorf("%s asks %s for %s %s: %q, want %q", c.from.Name, c.server, c.name, c.kind, got, c.want)
			}
		}
	}
	w.Serve(w.Outside, "outside", 7000)
	t.Run("first", check)
	stop(n)
	n = open(t, w, live...)
	t.Run("after a restart", check)

	if err := n.Remove("front"); !errors.Is(err, ErrInUse) {
		t.Errorf("a network with pods is removed: %v", err)
	}
	for _, p := range live {
		nettest.Must(t, n.Teardown(t.Context(), p.ID))
	}
	nettest.Must(t, errors.Join(n.Remove("front"), n.Remove("back")))
	if list := n.List(); len(list) != 0 {
		t.Errorf("left: %v", list)
	}
	nettest.Must(t, w.Thread.Do(func() error {
		links, err := net.Interfaces()
		for _, l := range links {
			if strings.HasPrefix(l.Name, "subnet") {
				t.Errorf("interface %s is left", l.Name)
			}
		}
		if err != nil {
			return err
		}
		filter, err := nftables.New()
		if err != nil {
			return err
		}
		tables, err := filter.ListTables()
		for _, table := range tables {
			if strings.HasPrefix(table.Name, "subpod-net") {
				t.Errorf("nftables table %s is left", table.Name)
			}
		}
		return err
	}))
}

// TestServiceNames: the name of a service whose port is not the pod's leads to that port,
// from the pod's own network.
func TestServiceNames(t *testing.T) {
	w := nettest.New(t)
	n := open(t, w)
	server, client := pod(w, "server"), pod(w, "client")
	server.Services = []netns.Service{
		{Names: []string{"mapped"}, Ports: []netns.ServicePort{{Proto: "tcp", Port: 80, TargetPort: 7000}, {Proto: "udp", Port: 53, TargetPort: 7000}}},
		{Names: []string{"direct"}, Ports: []netns.ServicePort{{Proto: "tcp", Port: 7000, TargetPort: 7000}}},
	}
	to, from := w.Setup(n, server), w.Setup(n, client)
	w.Serve(server.NetNS, "server", 7000)
	ns := from.Nameservers[0]
	if got := lookup(t, client, ns, "direct.", dnsmessage.TypeA); got != to.IPs[0].String() {
		t.Errorf("direct is %q", got)
	}
	for _, kind := range []dnsmessage.Type{dnsmessage.TypeA, dnsmessage.TypeAAAA} {
		addr, err := netip.ParseAddr(lookup(t, client, ns, "mapped.", kind))
		if err != nil || addr == to.IPs[0] {
			t.Errorf("mapped is %v, %v", addr, err)
			continue
		}
		w.WantAnswer(client.NetNS, "tcp", nettest.HostPort(addr, 80), "server", "")
		w.WantAnswer(client.NetNS, "udp", nettest.HostPort(addr, 53), "server", "")
	}
	server.Names = []string{"another"}
	n.Rename(t.Context(), server)
	for name, want := range map[string]string{"server.subpod.internal.": "RCodeNameError", "another.": to.IPs[0].String(), "direct.": to.IPs[0].String()} {
		if got := lookup(t, client, ns, name, dnsmessage.TypeA); got != want {
			t.Errorf("once it has another name, %s is %q, want %q", name, got, want)
		}
	}
	nettest.Must(t, n.Teardown(t.Context(), server.ID))
	n.Rename(t.Context(), server) // too late
	if got := lookup(t, client, ns, "another.subpod.internal.", dnsmessage.TypeA); got != "RCodeNameError" {
		t.Errorf("after its end another is %q", got)
	}
	if got := lookup(t, client, ns, "mapped.subpod.internal.", dnsmessage.TypeA); got != "RCodeNameError" {
		t.Errorf("after its end mapped is %q", got)
	}
}

// TestCreate: what a network cannot be is refused, and what is made is there for the next
// server, and only then.
func TestCreate(t *testing.T) {
	w := nettest.New(t)
	n := open(t, w)
	prefix := netip.MustParsePrefix
	made, err := n.Create(Config{Name: "one"}, true)
	if err != nil || len(made.Subnets) != 2 || made.Subnets[0] != prefix("10.89.0.0/24") {
		t.Fatalf("%+v, %v", made, err)
	}
	second, err := n.Create(Config{Name: "two"}, false)
	if err != nil || len(second.Subnets) != 1 || second.Subnets[0] != prefix("10.89.1.0/24") || second.Number == made.Number {
		t.Errorf("%+v, %v", second, err)
	}
	for name, c := range map[string]struct {
		config Config
		want   error
	}{
		"the same":    {Config{Name: "one"}, ErrExists},
		"no name":     {Config{}, ErrBadNetwork},
		"a path":      {Config{Name: "../x"}, ErrBadNetwork},
		"a mode":      {Config{Name: "host"}, ErrBadNetwork},
		"the default": {Config{Name: Default}, ErrBadNetwork},
		"overlap":     {Config{Name: "x", Subnets: []netip.Prefix{prefix("10.88.0.0/16")}}, ErrBadNetwork},
		"two of one":  {Config{Name: "x", Subnets: []netip.Prefix{prefix("10.1.0.0/24"), prefix("10.2.0.0/24")}}, ErrBadNetwork},
		"range":       {Config{Name: "x", Subnets: []netip.Prefix{prefix("10.1.0.0/24")}, Range: prefix("10.2.0.0/25")}, ErrBadNetwork},
		"mtu":         {Config{Name: "x", MTU: 100}, ErrBadNetwork},
	} {
		if _, err := n.Create(c.config, false); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	for _, p := range []netns.Pod{pod(w, "lost", "nosuch"), pod(w, "twice", "one", "one")} {
		if _, err := n.Setup(t.Context(), p); err == nil {
			t.Errorf("pod %s is connected", p.Name)
		}
	}
	nettest.Must(t, os.WriteFile(filepath.Join(w.Dir, "networks", "torn.json"), []byte(`{"name":"to`), 0o600))
	stop(n)
	n = open(t, w)
	if list := n.List(); len(list) != 2 || list[0].ID != made.ID || list[1].ID != second.ID {
		t.Errorf("the next server has %+v", list)
	}
	if err := n.Remove("nosuch"); !errors.Is(err, ErrUnknown) {
		t.Errorf("%v", err)
	}
	n.Foreign = func() string { return "there are others" }
	if _, err := n.Create(Config{Name: "three"}, false); !errors.Is(err, ErrForeign) {
		t.Errorf("%v", err)
	}
	if _, err := n.Setup(t.Context(), pod(w, "stranger", "one")); !errors.Is(err, ErrForeign) {
		t.Errorf("%v", err)
	}
}

// TestRemoveTwice: of two who remove a network, the slower one does not remove another that
// has its name since.
func TestRemoveTwice(t *testing.T) {
	w := nettest.New(t)
	n := open(t, w)
	if _, err := n.Create(Config{Name: "one"}, false); err != nil {
		t.Fatal(err)
	}
	first := n.networks["one"]
	first.making.Lock() // both are under way
	answers := make(chan error, 2)
	for range cap(answers) {
		go func() { answers <- n.Remove("one") }()
	}
	select {
	case err := <-answers:
		if !errors.Is(err, ErrUnknown) {
			t.Errorf("the second: %v", err)
		}
	case <-time.After(time.Minute):
		t.Error("both remove it")
	}
	first.making.Unlock()
	if err := <-answers; err != nil {
		t.Error(err)
	}
}

// TestReconcileLater: pods of a network that could not be made when the server began have
// what is theirs once it can be.
func TestReconcileLater(t *testing.T) {
	w := nettest.New(t)
	n := open(t, w)
	if _, err := n.Create(Config{Name: "one"}, false); err != nil {
		t.Fatal(err)
	}
	first := pod(w, "first", "one")
	result, err := n.Setup(t.Context(), first)
	nettest.Must(t, err)
	stop(n)
	n = open(t, w)
	dir := filepath.Join(w.Dir, "run", "networks", "one")
	nettest.Must(t, os.Rename(dir, dir+".away"))
	nettest.Must(t, os.WriteFile(dir, nil, 0o600))
	if err := n.Reconcile(t.Context(), []netns.Pod{first}); err == nil {
		t.Fatal("the network was made")
	}
	nettest.Must(t, os.Remove(dir))
	nettest.Must(t, os.Rename(dir+".away", dir))
	second := pod(w, "second", "one")
	second.Attachments[0].Addresses = result.IPs[:1]
	if _, err := n.Setup(t.Context(), second); err == nil {
		t.Error("a pod has the address of another")
	}
	if got := n.networks["one"].bridge.Addresses(first.ID); len(got) == 0 {
		t.Error("the first pod has lost its address")
	}
}

// TestTeardownWhileMade: a pod that is torn down while the bridge of its network is made, with
// what the last server has left of it, has nothing there afterwards.
func TestTeardownWhileMade(t *testing.T) {
	w := nettest.New(t)
	n := open(t, w)
	if _, err := n.Create(Config{Name: "one"}, false); err != nil {
		t.Fatal(err)
	}
	first := pod(w, "first", "one")
	_, err := n.Setup(t.Context(), first)
	nettest.Must(t, err)
	one := n.networks["one"]
	nettest.Must(t, one.bridge.Close())
	one.making.Lock()
	b, err := n.newBridge(one)
	nettest.Must(t, err)
	one.bridge, one.live = nil, []netns.Pod{first}
	done := make(chan error, 1)
	go func() { done <- n.Teardown(t.Context(), first.ID) }()
	time.Sleep(20 * time.Millisecond)
	nettest.Must(t, b.Reconcile(t.Context(), n.links(first)))
	n.mu.Lock()
	one.bridge, one.live = b, nil
	n.mu.Unlock()
	one.making.Unlock()
	nettest.Must(t, <-done)
	if got := b.Addresses(first.ID); len(got) > 0 {
		t.Errorf("it has the addresses %v", got)
	}
}
