package rootless

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"testing"
)

// TestExposeOfAPortThatIsFreeByNow is the moment between a refusal and the look at why: who
// had the port has let go of it.
func TestExposeOfAPortThatIsFreeByNow(t *testing.T) {
	calls := 0
	n := nodeWithDriver(t, func(w http.ResponseWriter, r *http.Request) {
		if calls++; calls == 1 {
			w.WriteHeader(http.StatusInternalServerError)
			_, _ = io.WriteString(w, `{"message": "conflict with ID 3"}`)
			return
		}
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, `{"id": 7}`)
	})
	spec := PortSpec{Proto: "tcp", HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: freePort(t), TargetIP: netip.MustParseAddr("10.88.0.2"), TargetPort: 80}
	if id, err := n.Expose(t.Context(), spec); id != 7 || err != nil {
		t.Errorf("%d, %v", id, err)
	}
}

// nodeWithDriver returns a node whose port driver answers so.
func nodeWithDriver(t *testing.T, answer http.HandlerFunc) *Node {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "ports.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	driver := &http.Server{Handler: answer}
	go func() { _ = driver.Serve(l) }()
	t.Cleanup(func() { driver.Close() })
	return &Node{PortSocket: socket}
}

// TestExposeIsNotInterrupted ends the request while the port driver begins to listen: the
// caller gets the ID of what is forwarded then.
func TestExposeIsNotInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	n := nodeWithDriver(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		cancel()
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, `{"id": 7}`)
	})
	spec := PortSpec{Proto: "tcp", HostPort: 8080, TargetIP: netip.MustParseAddr("10.88.0.2"), TargetPort: 80}
	if id, err := n.Expose(ctx, spec); id != 7 || err != nil {
		t.Errorf("interrupted while it is added: %d, %v", id, err)
	}
	if id, err := n.Expose(ctx, spec); err == nil {
		t.Errorf("a request that has ended: %d", id)
	}
}
