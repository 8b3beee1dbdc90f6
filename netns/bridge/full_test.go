package bridge

import (
	"errors"
	"fmt"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/tests/nettest"
)

// TestFullBridge fills the bridge with links that are no pods'. The next pod is refused
// in words, leaves nothing, and comes up once there is room.
func TestFullBridge(t *testing.T) {
	w := newWorld(t)
	b := w.bridge(Options{})
	w.Setup(b, w.Pod("first"))
	fill := func(i int) netlink.Link {
		return &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprint("fill", i), MasterIndex: b.device.now().index}, PeerName: fmt.Sprint("peer", i)}
	}
	for i := range maxPorts - 1 {
		nettest.Must(t, b.links.rt.LinkAdd(fill(i)))
	}
	next := w.Pod("next")
	_, err := b.Setup(t.Context(), next)
	if !errors.Is(err, netns.ErrFull) {
		t.Fatalf("a pod on a full bridge: %v, want %v", err, netns.ErrFull)
	}
	nettest.Must(t, b.Teardown(t.Context(), next.ID))
	if left := b.ipam.of(next.ID); len(left) > 0 {
		t.Errorf("a pod that was refused keeps %v", left)
	}
	nettest.Must(t, b.links.rt.LinkDel(fill(0)))
	w.Setup(b, next)
}
