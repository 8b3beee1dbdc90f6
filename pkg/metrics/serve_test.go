package metrics_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
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
func (s *silent) Addr() net.Addr { return &net.UnixAddr{Net: "unix"} }

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

// served returns the address of metrics that are served on loopback.
func served(t *testing.T, m *metrics.Metrics) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- m.Serve(ctx, l, log.Default()) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

// TestHost: on a loopback address a web page gets nothing by making its name lead there.
func TestHost(t *testing.T) {
	address := served(t, metrics.New("v", (&fake{}).sources(), nil))
	for host, want := range map[string]int{
		address: http.StatusOK, "127.0.0.1": http.StatusOK, "localhost:9464": http.StatusOK, "LocalHost": http.StatusOK, "[::1]:9464": http.StatusOK, "[::1]": http.StatusOK,
		"rebound.example:9464": http.StatusForbidden, "rebound.example": http.StatusForbidden, "localhost.rebound.example": http.StatusForbidden,
		"127.0.0.1.rebound.example:9464": http.StatusForbidden, "2130706433": http.StatusForbidden,
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+metrics.Path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = host
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != want || err != nil || strings.Contains(string(text), "subpod_") != (want == http.StatusOK) {
			t.Errorf("as %s: %s, %v, %.40q", host, resp.Status, err, text)
		}
	}
}

// TestKept: who has been answered keeps no connection from others.
func TestKept(t *testing.T) {
	address := served(t, metrics.New("v", (&fake{}).sources(), nil))
	for range 3 {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := fmt.Fprintf(conn, "GET /none HTTP/1.1\r\nHost: %s\r\nConnection: keep-alive\r\n\r\n", address); err != nil {
			t.Fatal(err)
		}
		if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if text, err := io.ReadAll(conn); err != nil || !strings.Contains(string(text), "404") {
			t.Errorf("the answer does not end: %v, %q", err, text)
		}
	}
}

// TestHammer: however often metrics are asked for, looking takes a small part of the time,
// and what is found is not older than that makes it.
func TestHammer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const took = 10 * time.Millisecond
		looks := 0
		f := &fake{}
		sources := f.sources()
		sources.Pods = func() []metrics.Pod { looks++; time.Sleep(took); return f.pods }
		l := &piped{silent{closed: make(chan struct{})}, make(chan net.Conn)}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- metrics.New("v", sources, nil).Serve(ctx, l, log.Default()) }()
		client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
			ours, theirs := net.Pipe()
			select {
			case l.conns <- theirs:
				return ours, nil
			case <-l.closed:
				return nil, net.ErrClosed
			}
		}}}
		ask := func() string {
			resp, err := client.Get("http://x" + metrics.Path)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			text, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != http.StatusOK {
				t.Fatalf("%s: %v", resp.Status, err)
			}
			return string(text)
		}
		asked := 0
		for begin := time.Now(); time.Since(begin) < 10*time.Second; asked++ {
			ask()
		}
		if asked > 1100 {
			t.Errorf("%d requests were answered in 10 s", asked)
		}
		if looks < 10 || looks > 21 {
			t.Errorf("in 10 s it was looked %d times, %v each", looks, took)
		}
		f.pods = []metrics.Pod{{Namespace: "new", State: "ready"}}
		time.Sleep(time.Second)
		if !strings.Contains(ask(), `namespace="new"`) {
			t.Error("after a second a pod is not there")
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// piped is a listener whose connections a test makes.
type piped struct {
	silent
	conns chan net.Conn
}

// Accept implements net.Listener.
func (p *piped) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}
