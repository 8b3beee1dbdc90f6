package metrics_test

import (
	"context"
	"log"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/subpod/subpod/pkg/metrics"
)

// silent is a listener with clients that connect and say nothing.
type silent struct {
	clients  int32
	accepted atomic.Int32
	once     sync.Once
	closed   chan struct{}
}

// Accept implements net.Listener.
func (s *silent) Accept() (net.Conn, error) {
	if s.accepted.Load() < s.clients {
		s.accepted.Add(1)
		_, server := net.Pipe()
		return server, nil
	}
	<-s.closed
	return nil, net.ErrClosed
}

// Close implements net.Listener.
func (s *silent) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

// Addr implements net.Listener.
func (s *silent) Addr() net.Addr { return &net.UnixAddr{} }

// TestSilentClients: however many connect, no more than some cost the server anything, and
// those are closed in time for the others.
func TestSilentClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &silent{clients: 1000, closed: make(chan struct{})}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() {
			done <- metrics.New("v", (&fake{}).sources(), nil).Serve(ctx, l, log.Default())
		}()
		synctest.Wait()
		if n := l.accepted.Load(); n == 0 || n > 50 {
			t.Errorf("%d connections are open", n)
		}
		time.Sleep(10 * time.Minute)
		if n := l.accepted.Load(); n != l.clients {
			t.Errorf("%d of %d connections had their turn", n, l.clients)
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
