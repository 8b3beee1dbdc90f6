package bridge

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/subpod/subpod/tests/nettest"
	"golang.org/x/sys/unix"
)

// rawIn opens a socket of the node.
func rawIn(t *testing.T, w *world) *rawSocket {
	t.Helper()
	var raw *rawSocket
	nettest.Must(t, w.Thread.Do(func() (err error) { raw, err = openRaw(); return err }))
	t.Cleanup(raw.close)
	return raw
}

// nowhere are requests that all fail.
func nowhere(n int) []*request {
	var out []*request
	for range n {
		out = append(out, upRequest(1<<30))
	}
	return out
}

// TestBatch: each request of a call has its own answer, whatever fails before it.
func TestBatch(t *testing.T) {
	raw := rawIn(t, newWorld(t))
	lo, err := raw.link("lo", 0)
	nettest.Must(t, err)
	up := upRequest(lo.Attrs().Index)
	all := slices.Concat(nowhere(maxRequests), []*request{up})
	all[0].passes = func(err error) bool { return errors.Is(err, unix.ENODEV) }
	if err := raw.send(all...); !errors.Is(err, unix.ENODEV) {
		t.Errorf("all but the last one fail: %v", err)
	}
	for i, q := range all {
		if failed := errors.Is(q.err, unix.ENODEV); failed != (q != up) {
			t.Errorf("request %d: %v", i, q.err)
		}
	}
	if err := raw.send(all[0], up); err != nil {
		t.Errorf("one that passes, and one that works: %v", err)
	}
}

// TestFullSocket: a call whose answers did not fit into the socket fails, and the next one
// has its answer.
func TestFullSocket(t *testing.T) {
	raw := rawIn(t, newWorld(t))
	room, err := unix.GetsockoptInt(raw.fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
	nettest.Must(t, err)
	nettest.Must(t, unix.SetsockoptInt(raw.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1))
	if err := raw.send(nowhere(maxRequests)...); !errors.Is(err, unix.ENOBUFS) {
		t.Errorf("more answers than fit: %v", err)
	}
	nettest.Must(t, unix.SetsockoptInt(raw.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, room/2)) // the kernel doubles it
	done := make(chan error, 1)
	go func() { _, err := raw.link("lo", 0); done <- err }()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("the next call waits for an answer that the kernel has dropped")
	}
}
