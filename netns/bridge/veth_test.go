package bridge

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/tests/nettest"
)

// TestRebuiltPod builds a pod again while the kernel still takes its old network
// namespace down, and with it, at any moment, the link of the same name.
func TestRebuiltPod(t *testing.T) {
	w := newWorld(t)
	b := w.bridge(Options{})
	pod := w.Pod("rebuilt")
	for n := range 100 {
		w.Setup(b, pod)
		nettest.Must(t, b.Teardown(context.Background(), pod.ID))
		nettest.Must(t, netns.Unpin(filepath.Dir(pod.NetNS)))
		time.Sleep(time.Duration(n) * 200 * time.Microsecond)
		pod.NetNS = w.Pin("rebuilt")
	}
}

// TestReuseOfALinkThatHasGone is the moment between what the kernel refuses and the look
// at why.
func TestReuseOfALinkThatHasGone(t *testing.T) {
	w := newWorld(t)
	b := w.bridge(Options{})
	pod := w.Pod("one")
	reused, err := b.links.reuse(vethName(pod.ID), pod, b.device.now().index, nil)
	if reused || err != nil {
		t.Errorf("reused %v, %v, want the names to be free", reused, err)
	}
}

// TestSilenceOfALinkThatLeaves stops the port of a pod while somebody takes its link out of
// the bridge, at any moment.
func TestSilenceOfALinkThatLeaves(t *testing.T) {
	w := newWorld(t)
	b := w.bridge(Options{})
	pod := w.Pod("one")
	w.Setup(b, pod)
	b.repairer.close()
	link, err := b.links.rt.LinkByName(vethName(pod.ID))
	nettest.Must(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 200 {
			_ = b.links.rt.LinkSetNoMaster(link)
			_ = b.links.rt.LinkSetMasterByIndex(link, b.device.now().index)
		}
	}()
	for {
		if err := b.links.silence(vethName(pod.ID)); err != nil {
			t.Fatal(err)
		}
		select {
		case <-done:
			return
		default:
		}
	}
}
