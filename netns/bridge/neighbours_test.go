package bridge

import (
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/tests/nettest"
)

// uncounted returns the neighbours, in a network namespace, that do not count against the
// kernel's limit.
func uncounted(t *testing.T, ns string) map[netip.Addr]string {
	t.Helper()
	found := map[netip.Addr]string{}
	nettest.Must(t, netns.In(ns, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		list, err := netns.Dump(func() ([]netlink.Neigh, error) { return h.NeighList(0, netlink.FAMILY_ALL) })
		for _, n := range list {
			if a, ok := netip.AddrFromSlice(n.IP); ok && n.Flags&netlink.NTF_EXT_LEARNED != 0 {
				found[a.Unmap()] = n.HardwareAddr.String()
			}
		}
		return err
	}))
	return found
}

func TestNeighboursDoNotCount(t *testing.T) {
	w := newWorld(t)
	b := w.bridge(Options{})
	one, two := w.Pod("one"), w.Pod("two")
	r1, r2 := w.Setup(b, one), w.Setup(b, two)
	w.Serve(w.NodeNS, "node", 80)
	for i := range r1.IPs {
		w.WantAnswer(one.NetNS, "tcp", nettest.HostPort(r1.Gateways[i], 80), "node", r1.IPs[i].String())
		if mac := uncounted(t, one.NetNS)[r1.Gateways[i]]; mac != b.device.now().mac.String() {
			t.Errorf("the gateway %s is at %q in the pod, want %s", r1.Gateways[i], mac, b.device.now().mac)
		}
		if mac := uncounted(t, w.NodeNS)[r1.IPs[i]]; mac != r1.MAC {
			t.Errorf("the pod's %s is at %q on the bridge, want %s", r1.IPs[i], mac, r1.MAC)
		}
	}
	nettest.Must(t, b.Teardown(t.Context(), one.ID))
	left := uncounted(t, w.NodeNS)
	for _, a := range r1.IPs {
		if left[a] != "" {
			t.Errorf("%s is a neighbour still when its pod has gone", a)
		}
	}
	// What a killed server left goes; what live pods have comes back.
	stale := addrAt(b.Subnets()[0], 99)
	nettest.Must(t, b.device.meet([]netip.Addr{stale}, macOf(stale)))
	nettest.Must(t, b.device.forget(r2.IPs))
	nettest.Must(t, b.Reconcile(t.Context(), []netns.Pod{two}))
	left = uncounted(t, w.NodeNS)
	if left[stale] != "" {
		t.Errorf("%s, of no pod, is a neighbour", stale)
	}
	for _, a := range r2.IPs {
		if left[a] != r2.MAC {
			t.Errorf("%s is at %q after a restart, want %s", a, left[a], r2.MAC)
		}
	}
}
