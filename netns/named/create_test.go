package named

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/netns/bridge"
	"github.com/subpod/subpod/tests/nettest"
)

// TestCreateSlowly: while a network is being written to a slow disk, pods of others are
// connected.
func TestCreateSlowly(t *testing.T) {
	w := nettest.New(t)
	n := open(t, w)
	_, err := n.Create(Config{Name: "one"}, false)
	nettest.Must(t, err)
	// Who opens a FIFO for writing waits for a reader.
	slow := filepath.Join(n.StateDir, "slow.json.new")
	nettest.Must(t, unix.Mkfifo(slow, 0o600))
	created := make(chan error, 1)
	go func() { _, err := n.Create(Config{Name: "slow"}, false); created <- err }()
	for n.creating.TryLock() { // until it is under way
		n.creating.Unlock()
		time.Sleep(time.Millisecond)
	}
	connected := make(chan error, 1)
	p := pod(w, "pod", "one")
	go func() { _, err := n.Setup(t.Context(), p); connected <- err }()
	select {
	case err := <-connected:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Error("a pod waits for the disk")
	}
	r, err := os.OpenFile(slow, os.O_RDONLY|unix.O_NONBLOCK, 0)
	nettest.Must(t, err)
	defer r.Close()
	if err := <-created; err == nil { // EINVAL: a FIFO cannot be synced
		t.Error("what is not on the disk is created")
	}
}

// TestCreateFails: of a network that could not be stored nothing is left, for this server
// and the next.
func TestCreateFails(t *testing.T) {
	w := nettest.New(t)
	n := open(t, w)
	_, err := n.Create(Config{Name: "one"}, false)
	nettest.Must(t, err)
	nettest.Must(t, os.Mkdir(filepath.Join(n.StateDir, "two.json"), 0o700)) // so that the renaming fails
	if _, err := n.Create(Config{Name: "two"}, false); err == nil {
		t.Fatal("it is created")
	}
	nettest.Must(t, os.Remove(filepath.Join(n.StateDir, "two.json")))
	files, err := filepath.Glob(filepath.Join(n.StateDir, "*"))
	nettest.Must(t, err)
	if len(files) != 1 || len(n.List()) != 1 {
		t.Errorf("left: %v, %v", files, n.List())
	}
	if _, err := n.Create(Config{Name: "two"}, false); err != nil {
		t.Errorf("again: %v", err)
	}
}

// TestCreateOnUplink: no network takes the addresses by which the node reaches the host.
func TestCreateOnUplink(t *testing.T) {
	w := nettest.New(t)
	n := open(t, w)
	for _, s := range []string{"192.0.2.128/25", "192.0.0.0/16", "2001:db8::/96"} {
		if _, err := n.Create(Config{Name: "up", Subnets: []netip.Prefix{netip.MustParsePrefix(s)}}, false); !errors.Is(err, ErrBadNetwork) {
			t.Errorf("%s: %v", s, err)
		}
	}
	made, err := n.Create(Config{Name: "one"}, false)
	nettest.Must(t, err)
	w.Setup(n, pod(w, "pod", "one"))
	if _, err := n.Create(Config{Name: "two", Subnets: made.Subnets}, false); !errors.Is(err, ErrBadNetwork) {
		t.Errorf("the subnet of another: %v", err)
	}
}

// TestOutside: a pod that has a way out has names outside looked up, also where the
// network that leads out has no names of its own.
func TestOutside(t *testing.T) {
	w := nettest.New(t)
	n := open(t, w)
	asked := netip.MustParseAddr("192.0.2.1")
	for _, c := range []Config{{Name: "inside", Internal: true}, {Name: "out", NoNames: true, Resolvers: []netip.Addr{asked}}, {Name: "deep", NoNames: true, Internal: true}} {
		_, err := n.Create(c, false)
		nettest.Must(t, err)
	}
	known := func(p netns.Pod) (closed bool, upstreams []netip.Addr) {
		out := n.known(p, func(string) *bridge.Bridge { return n.Bridge })
		return out.Closed, out.Upstreams
	}
	if closed, upstreams := known(pod(w, "both", "inside", "out")); closed || !slices.Equal(upstreams, []netip.Addr{asked}) {
		t.Errorf("closed %v, asks %v", closed, upstreams)
	}
	if closed, _ := known(pod(w, "neither", "inside", "deep")); !closed {
		t.Error("a pod of internal networks has names looked up")
	}
}
