package bridge

import (
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/tests/nettest"
)

// TestCongestion: what is sent by a pod's default routes has the congestion control that
// the network was given, and a pod starts where the kernel does not have it.
func TestCongestion(t *testing.T) {
	for given, want := range map[string]string{"reno": "reno", "": "", "unheard-of": ""} {
		w := newWorld(t)
		pod := w.Pod("one")
		w.Setup(w.bridge(Options{Congestion: given}), pod)
		var routes []netlink.Route
		nettest.Must(t, netns.In(pod.NetNS, func() error {
			h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
			if err != nil {
				return err
			}
			defer h.Close()
			routes, err = routeList(h)
			return err
		}))
		defaults := 0
		for _, r := range routes {
			if r.Gw == nil {
				if r.Congctl != "" {
					t.Errorf("given %q: a route without a gateway has %q", given, r.Congctl)
				}
				continue
			}
			if defaults++; r.Congctl != want {
				t.Errorf("given %q: the default route by %s has %q, want %q", given, r.Gw, r.Congctl, want)
			}
		}
		if defaults == 0 {
			t.Errorf("given %q: no default route", given)
		}
	}
}
