package bridge

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/tests/nettest"
)

// TestApartGolden: the chain that keeps a network apart.
func TestApartGolden(t *testing.T) {
	w := newWorld(t)
	w.bridge(Options{Name: "subnet1", Table: "subpod-net1", Veth: "n01", Apart: &Apart{From: "subpod0", Internal: true},
		Subnets: []netip.Prefix{netip.MustParsePrefix("10.91.0.0/24")}})
	got := w.nftTable("inet", "subpod-net1")
	want, err := os.ReadFile("testdata/apart.nft")
	nettest.Must(t, err)
	if got != string(want) {
		t.Errorf("rules differ from testdata/apart.nft; they are now:\n%s", got)
	}
}

// TestWanted: a pod gets the addresses that it wants and nobody else does, chosen ones
// come from the range, and what cannot be is refused with nothing left.
func TestWanted(t *testing.T) {
	m, err := openIPAM(t.TempDir())
	nettest.Must(t, err)
	subnets := []netip.Prefix{netip.MustParsePrefix("10.91.0.0/24"), netip.MustParsePrefix("fd09::/64")}
	m.limit(netip.MustParsePrefix("10.91.0.128/30"), subnets)
	wanted := netip.MustParseAddr("10.91.0.7")
	got, err := m.claim("first", subnets, wanted)
	if err != nil || len(got) != 2 || got[0] != wanted {
		t.Fatalf("%v, %v", got, err)
	}
	for addr, want := range map[string]error{
		"10.91.0.7": netns.ErrAddressTaken, "10.92.0.7": netns.ErrBadPod, "10.91.0.0": netns.ErrBadPod,
		"10.91.0.1": netns.ErrBadPod, "10.91.0.255": netns.ErrBadPod,
	} {
		if got, err := m.claim("second", subnets, netip.MustParseAddr("fd09::99"), netip.MustParseAddr(addr)); !errors.Is(err, want) || len(m.of("second")) > 0 {
			t.Errorf("%s: %v, %v; it has %v", addr, got, err, m.of("second"))
		}
	}
	for range 3 {
		for i, pod := range []string{"a", "b", "c"} {
			got, err := m.claim(pod, subnets)
			if err != nil || !netip.MustParsePrefix("10.91.0.128/30").Contains(got[0]) {
				t.Errorf("%d: %v, %v", i, got, err)
			}
		}
		for _, pod := range []string{"a", "b", "c"} {
			nettest.Must(t, m.release(pod))
		}
	}
}

// TestMACs: a hardware address is one pod's, and none that belongs to others.
func TestMACs(t *testing.T) {
	m, err := openIPAM(t.TempDir())
	nettest.Must(t, err)
	subnets := []netip.Prefix{netip.MustParsePrefix("10.91.0.0/24")}
	for _, pod := range []string{"first", "second"} {
		_, err := m.claim(pod, subnets)
		nettest.Must(t, err)
	}
	mac := func(s string) net.HardwareAddr {
		a, err := net.ParseMAC(s)
		nettest.Must(t, err)
		return a
	}
	chosen := mac("92:d0:c6:0a:29:33")
	nettest.Must(t, m.setMAC("first", chosen))
	if got := m.mac("first"); got.String() != chosen.String() {
		t.Errorf("it has %s", got)
	}
	for text, want := range map[string]error{
		chosen.String(): netns.ErrAddressTaken, "01:00:5e:00:00:01": netns.ErrBadPod, "ff:ff:ff:ff:ff:ff": netns.ErrBadPod,
		"00:00:00:00:00:00": netns.ErrBadPod, "0a:58:0a:5b:00:01": netns.ErrBadPod, "02:00:5e:10:00:00:00:01": netns.ErrBadPod,
	} {
		if err := m.setMAC("second", mac(text)); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", text, err, want)
		}
	}
	nettest.Must(t, m.release("first"))
	nettest.Must(t, m.setMAC("second", chosen))
}

// TestServices: the address of a service leads to the pod's port, from its own network.
func TestServices(t *testing.T) {
	v4, v6 := netip.MustParseAddr("10.88.3.7"), netip.MustParseAddr("fd10:88::307")
	for _, c := range []struct {
		addr   netip.Addr
		number int
		want   string
	}{{v4, 0, "240.88.3.7"}, {v4, 14, "254.88.3.7"}, {v4, 15, ""}, {v6, 1, "fd5e:1271:ce00:1::307"}, {v6, 256, ""}, {v4, -1, ""}} {
		got, ok := ServiceAddress(c.addr, c.number)
		if ok != (c.want != "") || ok && got.String() != c.want {
			t.Errorf("%s, %d: %v, %v; want %q", c.addr, c.number, got, ok, c.want)
		}
	}
	w := newWorld(t)
	b := w.bridge(Options{})
	pod := w.Pod("one")
	pod.Services = []netns.Service{{Ports: []netns.ServicePort{{Proto: "tcp", Port: 80}}}}
	if _, err := b.Setup(context.Background(), pod); !errors.Is(err, netns.ErrBadPod) {
		t.Errorf("a port without a target: %v", err)
	}
}
