package bridge

import (
	"bytes"
	"context"
	"net/netip"
	"os"
	"os/exec"
	"testing"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/tests/nettest"
)

// nft returns the table as nft(8) prints it.
func (w *world) nft() string {
	w.T.Helper()
	return w.nftTable("inet", tableName)
}

func (w *world) nftTable(family, name string) string {
	w.T.Helper()
	nft, err := exec.LookPath("nft")
	if err != nil {
		w.T.Skip("nft(8) is not installed: it renders the rules for comparison")
	}
	var out []byte
	nettest.Must(w.T, netns.In(w.NodeNS, func() (err error) {
		out, err = exec.Command(nft, "list", "table", family, name).CombinedOutput()
		return err
	}))
	return string(out)
}

// emptyRules are the rules without a pod.
func emptyRules(t *testing.T, w *world) string {
	other := newWorld(t)
	other.bridge(Options{})
	return other.nft()
}

func TestRulesGolden(t *testing.T) {
	w := newWorld(t)
	b := w.bridge(Options{Subnets: []netip.Prefix{netip.MustParsePrefix("10.88.0.0/16"), netip.MustParsePrefix("fd10:88::/64")}})
	empty := w.nft()
	pod := w.Pod("one",
		netns.PortMapping{Proto: "tcp", HostPort: 8080, ContainerPort: 80},
		netns.PortMapping{Proto: "udp", HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: 53, ContainerPort: 53},
		netns.PortMapping{Proto: "sctp", HostIP: netip.MustParseAddr("2001:db8::2"), HostPort: 9999, ContainerPort: 9})
	pod.Services = []netns.Service{{Names: []string{"web"}, Ports: []netns.ServicePort{{Proto: "tcp", Port: 80, TargetPort: 8080}}}}
	w.Setup(b, pod)
	nettest.Must(t, b.SetResolvers(b.Gateways()))
	got := w.nft()
	want, err := os.ReadFile("testdata/rules.nft")
	nettest.Must(t, err)
	if !bytes.Equal([]byte(got), want) {
		t.Errorf("rules differ from testdata/rules.nft; they are now:\n%s", got)
	}
	nettest.Must(t, b.Teardown(context.Background(), pod.ID))
	nettest.Must(t, b.SetResolvers(nil))
	if after := w.nft(); after != empty {
		t.Errorf("Teardown left rules:\n%s", after)
	}
	// Elements that are gone already are no error.
	nettest.Must(t, b.rules.remove(elementsOf(pod.Ports, []netip.Addr{netip.MustParseAddr("10.88.0.2"), netip.MustParseAddr("fd10:88::2")})))
}

// TestPortSecurityGolden: pods come and go as elements, and nothing of them stays.
func TestPortSecurityGolden(t *testing.T) {
	w := newWorld(t)
	// One address of each family, the link-local one among them: nft lists several in
	// no fixed order.
	o := Options{Subnets: []netip.Prefix{netip.MustParsePrefix("10.88.0.0/16")}}
	b := w.bridge(o)
	table := func() string { return w.nftTable("bridge", b.nft.securityTable().Name) }
	empty := table()
	pod := w.Pod("one")
	w.Setup(b, pod)
	got := table()
	want, err := os.ReadFile("testdata/ports.nft")
	nettest.Must(t, err)
	if got != string(want) {
		t.Errorf("rules differ from testdata/ports.nft; they are now:\n%s", got)
	}
	b = w.bridge(o, pod)
	if after := table(); after != got {
		t.Errorf("a restart has changed the rules to:\n%s", after)
	}
	nettest.Must(t, b.Teardown(context.Background(), pod.ID))
	if after := table(); after != empty {
		t.Errorf("Teardown left rules:\n%s", after)
	}
	// A pod that this server does not know, as one whose network could not be read.
	unknown := w.Pod("two")
	w.Setup(b, unknown)
	b.pods.byID = nil
	nettest.Must(t, b.Teardown(context.Background(), unknown.ID))
	if after := table(); after != empty {
		t.Errorf("Teardown of an unknown pod left rules:\n%s", after)
	}
}
