package bridge

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/tests/nettest"
)

// TestRefusedPodCIDR: subnets that are refused change nothing, now and for later servers.
func TestRefusedPodCIDR(t *testing.T) {
	w := newWorld(t)
	b := w.bridge(Options{})
	good := []netip.Prefix{netip.MustParsePrefix("10.244.3.0/24"), netip.MustParsePrefix("fd00:10:244::/64")}
	nettest.Must(t, b.SetPodCIDR(context.Background(), good))
	before, rules := b.device.now(), w.nft()
	file := filepath.Join(w.Dir, "state", cidrFile)
	stored, err := os.ReadFile(file)
	nettest.Must(t, err)
	refuse := func(what string, cidrs ...string) {
		t.Helper()
		var list []netip.Prefix
		for _, c := range cidrs {
			list = append(list, netip.MustParsePrefix(c))
		}
		if err := b.SetPodCIDR(context.Background(), list); err == nil {
			t.Fatalf("%s: %v was accepted", what, cidrs)
		}
		after := b.device.now()
		if !slices.Equal(after.subnets, before.subnets) || !slices.Equal(after.served, before.served) {
			t.Errorf("%s: subnets %v, served %v; before %v, %v", what, after.subnets, after.served, before.subnets, before.served)
		}
		if kernel, err := b.device.prefixes(); err != nil || len(kernel) != len(before.served) {
			t.Errorf("%s: the bridge has %v (%v), before %v", what, kernel, err, before.served)
		}
		if text := w.nft(); text != rules {
			t.Errorf("%s: the rules have changed:\n%s\nbefore:\n%s", what, text, rules)
		}
		if text, err := os.ReadFile(file); err != nil || string(text) != string(stored) {
			t.Errorf("%s: stored %q (%v), before %q", what, text, err, stored)
		}
	}
	refuse("a multicast subnet", "10.7.0.0/24", "ff02::/64")
	refuse("a loopback subnet", "127.9.0.0/24")
	refuse("the unspecified address", "0.0.0.0/8")
	refuse("an address", "10.7.0.1/32")
	refuse("two of a family", "10.7.0.0/24", "10.8.0.0/24")
	nettest.Must(t, os.Mkdir(file+".new", 0o700)) // nothing can be stored
	refuse("a full disk", "10.7.0.0/24", "fd07::/64")
	nettest.Must(t, os.Remove(file+".new"))
	b = w.bridge(Options{})
	if r := w.Setup(b, w.Pod("one")); !good[0].Contains(r.IPs[0]) || !good[1].Contains(r.IPs[1]) {
		t.Errorf("after a restart addresses %v, want in %v", r.IPs, good)
	}
}

// TestWaitForPodCIDR: where it is waited for, the network is not ready before the kubelet has
// handed over the subnets, also after a restart of the server; what is made in the meantime
// by others is connected all the same.
func TestWaitForPodCIDR(t *testing.T) {
	w := newWorld(t)
	wait := Options{WaitForPodCIDR: true}
	b := w.bridge(wait)
	w.Setup(b, w.Pod("early"))
	for range 2 {
		if err := b.Status(t.Context()); !errors.Is(err, netns.ErrNotReady) || !errors.Is(err, ErrNoPodCIDR) {
			t.Fatalf("before SetPodCIDR: %v", err)
		}
		nettest.Must(t, b.SetPodCIDR(t.Context(), nil)) // a kubelet without one
		b = w.bridge(wait)
	}
	nettest.Must(t, b.SetPodCIDR(t.Context(), []netip.Prefix{netip.MustParsePrefix("10.244.3.0/24")}))
	nettest.Must(t, b.Status(t.Context()))
	nettest.Must(t, w.bridge(wait).Status(t.Context()))
}
