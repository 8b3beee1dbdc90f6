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

// TestExposeIsNotInterrupted ends the request while the port driver begins to listen: the
// caller gets the ID of what is forwarded then.
func TestExposeIsNotInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	socket := filepath.Join(t.TempDir(), "ports.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	driver := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		cancel()
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, `{"id": 7}`)
	})}
	go func() { _ = driver.Serve(l) }()
	t.Cleanup(func() { driver.Close() })
	n := &Node{PortSocket: socket}
	spec := PortSpec{Proto: "tcp", HostPort: 8080, TargetIP: netip.MustParseAddr("10.88.0.2"), TargetPort: 80}
	if id, err := n.Expose(ctx, spec); id != 7 || err != nil {
		t.Errorf("interrupted while it is added: %d, %v", id, err)
	}
	if id, err := n.Expose(ctx, spec); err == nil {
		t.Errorf("a request that has ended: %d", id)
	}
}
