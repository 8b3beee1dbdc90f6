package stream

import (
	"bytes"
	"context"
	"io"
	"net"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/stdio"
)

// slowLink carries TCP connections to a server. It passes on what the client
// sends at once, but of what the server sends only so much until it is released,
// so that the rest stays in the server's socket: a slow reader whose slowness
// does not depend on time, nor on what the client's own buffers hold.
type slowLink struct {
	address  string
	released chan struct{}
	sent     atomic.Int64 // bytes from the client

	mu    sync.Mutex
	conns []*net.TCPConn
}

// newSlowLink carries connections to the server at target until the test ends.
func newSlowLink(t testing.TB, target string, before int64) *slowLink {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	k := &slowLink{address: l.Addr().String(), released: make(chan struct{})}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { k.carry(client.(*net.TCPConn), target, before) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		k.mu.Lock()
		for _, c := range k.conns {
			_ = c.Close()
		}
		k.mu.Unlock()
		k.release()
		wg.Wait()
	})
	return k
}

// release lets everything pass from now on. It is idempotent.
func (k *slowLink) release() {
	k.mu.Lock()
	defer k.mu.Unlock()
	select {
	case <-k.released:
	default:
		close(k.released)
	}
}

// url replaces the server's address in a session's URL.
func (k *slowLink) url(t testing.TB, raw, target string) string {
	t.Helper()
	if !strings.Contains(raw, target) {
		t.Fatalf("%s is no URL of %s", raw, target)
	}
	return strings.Replace(raw, target, k.address, 1)
}

func (k *slowLink) carry(client *net.TCPConn, target string, before int64) {
	defer client.Close()
	// A receive buffer that is set before the connection is made stays so small.
	d := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 32<<10) })
	}}
	conn, err := d.Dial("tcp", target)
	if err != nil {
		return
	}
	server := conn.(*net.TCPConn)
	defer server.Close()
	k.mu.Lock()
	k.conns = append(k.conns, client, server)
	k.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(server, io.TeeReader(client, counter{&k.sent}))
		_ = server.Close()
	}()
	_, err = io.Copy(client, io.LimitReader(server, before))
	if err == nil {
		<-k.released
		_, err = io.Copy(client, onlyConn{server})
	}
	if err != nil {
		_ = client.SetLinger(0) // a reset stays one
		_ = client.Close()
	}
	_ = client.CloseWrite()
	<-done
}

type counter struct{ n *atomic.Int64 }

func (c counter) Write(p []byte) (int, error) { c.n.Add(int64(len(p))); return len(p), nil }

type onlyConn struct{ io.Reader }

// address is where the server of start listens.
func (s *Server) address() string { return s.base.Host }

// TestSlowReader: a command ends while most of its output waits in the server's
// socket, then the client sends something: a ping, or the stdin that nobody
// reads. All of the output arrives, and the exit code after it.
func TestSlowReader(parent *testing.T) {
	const size, passed = 2_000_000, 1_000_000
	for name, flags := range transports {
		for _, stdin := range []bool{false, true} {
			sub := name + "/ping"
			if stdin {
				sub = name + "/stdin"
			}
			parent.Run(sub, func(t *testing.T) {
				t.Parallel()
				b := &local{ended: make(chan error, 1)}
				s := start(parent, b, Options{})
				link := newSlowLink(t, s.address(), passed)
				url, err := s.Exec(&runtimeapi.ExecRequest{ContainerId: "c1", Stdin: stdin, Stdout: true, Stderr: true,
					Cmd: []string{"sh", "-c", "head -c 2000000 /dev/zero | tr '\\0' x; echo err >&2; exit 7"}})
				if err != nil {
					t.Fatal(err)
				}
				args := append([]string{}, flags...)
				var input io.Reader
				if stdin {
					args = append(args, "-stdin")
					input = zeros{}
				}
				go func() {
					<-b.ended
					// client-go pings every 5 s.
					for before := link.sent.Load(); link.sent.Load() == before && t.Context().Err() == nil; {
						time.Sleep(10 * time.Millisecond)
					}
					time.Sleep(200 * time.Millisecond) // a reset would be here by now
					link.release()
				}()
				got := runClient(t, input, append(args, "command", link.url(t, url, s.address()))...)
				if n := strings.Count(got.stdout, "x"); n != size || len(got.stdout) != size || got.exit != 7 || !strings.HasPrefix(got.stderr, "err\n") {
					t.Errorf("%d of %d bytes, exit %d, stderr %.200q", n, size, got.exit, got.stderr)
				}
			})
		}
	}
}

// TestStoppedReader: a client that is stopped while the command goes on writing
// is disconnected once it has taken nothing for the idle timeout.
func TestStoppedReader(parent *testing.T) {
	for name, flags := range transports {
		parent.Run(name, func(t *testing.T) {
			t.Parallel()
			b := &local{ended: make(chan error, 1)}
			// Less than a client may take for its first byte would end the session before.
			s := start(parent, b, Options{IdleTimeout: 3 * time.Second})
			c, _, first := startClient(t, s, &runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"yes"}, Stdout: true, Stderr: true}, flags)
			<-first
			if err := c.Process.Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			select {
			case <-b.ended:
			case <-time.After(patience):
				t.Error("the exec goes on although nobody takes its output")
			}
		})
	}
}

// TestKilledWithUnreadStdin: a session ends with its client although the command
// does not read stdin, so that the library does not read the connection.
func TestKilledWithUnreadStdin(parent *testing.T) {
	for name, flags := range transports {
		parent.Run(name, func(t *testing.T) {
			t.Parallel()
			b := &local{ended: make(chan error, 1)}
			s := start(parent, b, Options{})
			c, stdin, first := startClient(t, s, &runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"sh", "-c", "echo; exec sleep 1000"},
				Stdin: true, Stdout: true, Stderr: true}, append([]string{"-stdin"}, flags...))
			// More than the library's queue holds (50 frames of 32 KiB in SPDY's,
			// one message in a WebSocket's), and less than fills the socket as
			// well: the client's end must get through.
			unread := int64(100_000)
			if name == "SPDY" {
				unread = 1_720_000
			}
			go func() { _, _ = io.Copy(stdin, io.LimitReader(zeros{}, unread)) }()
			<-first
			time.Sleep(time.Second) // for the library's buffers to fill
			_ = c.Process.Kill()
			select {
			case <-b.ended:
			case <-time.After(patience):
				t.Error("the exec outlives its client")
			}
		})
	}
}

// startClient starts the client on a new session. The channel is closed once
// the first output has arrived. Its stdin never ends.
func startClient(t *testing.T, s *Server, req *runtimeapi.ExecRequest, flags []string) (*exec.Cmd, io.Writer, <-chan struct{}) {
	t.Helper()
	url, err := s.Exec(req)
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(client, append(append([]string{}, flags...), "command", url)...)
	stdin, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	first := make(chan struct{})
	c.Stdout = &firstByte{ch: first}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	})
	return c, stdin, first
}

type firstByte struct {
	once sync.Once
	ch   chan struct{}
}

func (f *firstByte) Write(p []byte) (int, error) {
	f.once.Do(func() { close(f.ch) })
	return len(p), nil
}

// silent is a backend whose Exec writes a fixed output at once.
type silent struct {
	local
	output []byte
}

// Exec implements Backend.
func (b *silent) Exec(_ context.Context, _ string, _ []string, s stdio.Streams) (exit int32, err error) {
	end := b.begin()
	defer func() { end(err) }()
	_, err = io.Copy(s.Stdout, bytes.NewReader(b.output))
	return 7, err
}

// TestDrainIsBounded: a client that takes nothing of what a command has left is
// disconnected after the idle timeout, and Close does not wait for that long.
func TestDrainIsBounded(parent *testing.T) {
	for _, byClose := range []bool{false, true} {
		name := "idle timeout"
		o := Options{IdleTimeout: 3 * time.Second}
		if byClose {
			name, o.IdleTimeout = "Close", time.Hour
		}
		parent.Run(name, func(t *testing.T) {
			t.Parallel()
			b := &silent{local: local{ended: make(chan error, 1)}, output: make([]byte, 1_000_000)}
			s := start(parent, b, o)
			link := newSlowLink(t, s.address(), 1000)
			url, err := s.Exec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"x"}, Stdout: true})
			if err != nil {
				t.Fatal(err)
			}
			c := exec.Command(client, "-stderr=false", "command", link.url(t, url, s.address()))
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				_ = c.Process.Kill()
				_ = c.Wait()
			}()
			if err := <-b.ended; err != nil {
				t.Fatal(err)
			}
			if byClose {
				closed := make(chan error, 1)
				go func() { closed <- s.Close() }()
				select {
				case err := <-closed:
					if err != nil {
						t.Error(err)
					}
				case <-time.After(patience):
					t.Error("Close waits for a client that takes nothing")
				}
			}
			eventually(t, "the connection is closed", func() bool { return s.connections() == 0 })
		})
	}
}

func (s *Server) connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}
