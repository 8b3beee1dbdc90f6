package stream

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// listenTCP serves each connection on a loopback port, as a pod would.
func listenTCP(t testing.TB, serve func(*net.TCPConn)) (port int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				serve(c.(*net.TCPConn))
			})
		}
	})
	return l.Addr().(*net.TCPAddr).Port
}

// forwardWith starts the client on a new session and returns its local port.
func forwardWith(t *testing.T, s *Server, port int, flags ...string) (local string, stderr *bytes.Buffer, stop func(kill bool)) {
	t.Helper()
	url, err := s.PortForward(&runtimeapi.PortForwardRequest{PodSandboxId: "p"})
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(client, append(flags, "forward", url, strconv.Itoa(port))...)
	stdin, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stderr = &bytes.Buffer{}
	c.Stderr = stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	stop = func(kill bool) {
		once.Do(func() {
			if kill {
				_ = c.Process.Kill()
			}
			_ = stdin.Close()
			_ = c.Wait()
		})
	}
	t.Cleanup(func() { stop(true) })
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		stop(true)
		t.Fatalf("no local port: %v; %s", err, stderr)
	}
	return "127.0.0.1:" + strings.TrimSpace(line), stderr, stop
}

// TestForwardClients: client-go over SPDY, and over SPDY inside a WebSocket.
func TestForwardClients(t *testing.T) {
	for name, flags := range map[string][]string{"SPDY": nil, "WebSocket": {"-ws"}} {
		t.Run(name, func(t *testing.T) {
			b := &local{}
			s := start(t, b, Options{})
			// Answers only once the client's direction has ended.
			port := listenTCP(t, func(c *net.TCPConn) {
				h := sha256.New()
				n, _ := io.Copy(h, c)
				_, _ = fmt.Fprintf(c, "%d %x", n, h.Sum(nil))
			})
			local, stderr, stop := forwardWith(t, s, port, flags...)
			var wg sync.WaitGroup
			for i := range 20 {
				wg.Go(func() {
					data := bytes.Repeat([]byte{byte(i)}, i*100_000)
					conn, err := net.Dial("tcp", local)
					if err != nil {
						t.Error(err)
						return
					}
					defer conn.Close()
					_ = conn.SetDeadline(time.Now().Add(patience))
					if _, err := conn.Write(data); err != nil {
						t.Error(err)
					}
					_ = conn.(*net.TCPConn).CloseWrite()
					got, err := io.ReadAll(conn)
					if want := fmt.Sprintf("%d %x", len(data), sha256.Sum256(data)); err != nil || string(got) != want {
						t.Errorf("connection %d: got %q, %v, want %q", i, got, err, want)
					}
				})
			}
			wg.Wait()
			eventually(t, "all connections have ended", func() bool { return b.active.Load() == 0 })
			stop(false)
			if stderr.Len() > 0 {
				t.Errorf("the client said: %s", stderr)
			}
		})
	}
}

func TestForwardRefused(t *testing.T) {
	for name, flags := range map[string][]string{"SPDY": nil, "WebSocket": {"-ws"}} {
		t.Run(name, func(t *testing.T) {
			s := start(t, &local{}, Options{})
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			closed := l.Addr().(*net.TCPAddr).Port
			_ = l.Close()
			local, stderr, stop := forwardWith(t, s, closed, flags...)
			conn, err := net.Dial("tcp", local)
			if err != nil {
				t.Fatal(err)
			}
			_ = conn.SetDeadline(time.Now().Add(patience))
			if b, err := io.ReadAll(conn); len(b) > 0 || errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %q, %v", b, err)
			}
			_ = conn.Close()
			stop(false)
			// A client that is slower than the refusal sees its stream reset.
			if got := stderr.String(); !strings.Contains(got, "connection refused") && !strings.Contains(got, "Stream reset") {
				t.Errorf("the client said %q, not that the connection was refused", got)
			}
		})
	}
}

// TestForwardClientKilled: the connections into the pod end with their client,
// also when nothing moves on them.
func TestForwardClientKilled(t *testing.T) {
	for name, flags := range map[string][]string{"SPDY": nil, "WebSocket": {"-ws"}} {
		t.Run(name, func(t *testing.T) {
			b := &local{}
			s := start(t, b, Options{})
			ends := make(chan struct{}, 3)
			port := listenTCP(t, func(c *net.TCPConn) {
				_, _ = c.Write([]byte("hello"))
				_, _ = io.Copy(io.Discard, c)
				ends <- struct{}{}
			})
			local, _, stop := forwardWith(t, s, port, flags...)
			for range 3 {
				conn, err := net.Dial("tcp", local)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				if _, err := io.ReadFull(conn, make([]byte, 5)); err != nil {
					t.Fatal(err)
				}
			}
			stop(true)
			for range 3 {
				select {
				case <-ends:
				case <-time.After(patience):
					t.Fatal("a connection into the pod outlives its client")
				}
			}
			eventually(t, "the backend's calls return", func() bool { return b.active.Load() == 0 })
		})
	}
}

// dialSPDY opens a session and one connection on it.
func dialSPDY(t *testing.T, s *Server, port int) (conn httpstream.Connection, data, errs httpstream.Stream) {
	t.Helper()
	url, err := s.PortForward(&runtimeapi.PortForwardRequest{PodSandboxId: "p"})
	if err != nil {
		t.Fatal(err)
	}
	rt, err := spdy.NewRoundTripper(nil)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequest(http.MethodPost, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set(httpstream.HeaderProtocolVersion, portforward.ProtocolV1Name)
	resp, err := rt.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if conn, err = rt.NewConnection(resp); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	h := http.Header{}
	h.Set(portforward.PortHeader, strconv.Itoa(port))
	h.Set(portforward.PortForwardRequestIDHeader, "1")
	h.Set(portforward.StreamType, portforward.StreamTypeError)
	if errs, err = conn.CreateStream(h); err != nil {
		t.Fatal(err)
	}
	h.Set(portforward.StreamType, portforward.StreamTypeData)
	if data, err = conn.CreateStream(h); err != nil {
		t.Fatal(err)
	}
	return conn, data, errs
}

// TestForwardPodEndsFirst: the pod ends its direction, the client sends on, and
// the pod gets all of it.
func TestForwardPodEndsFirst(t *testing.T) {
	b := &local{}
	s := start(t, b, Options{})
	got := make(chan int64, 1)
	port := listenTCP(t, func(c *net.TCPConn) {
		_, _ = c.Write([]byte("that is all from me"))
		_ = c.CloseWrite()
		n, _ := io.Copy(io.Discard, c)
		got <- n
	})
	_, data, errs := dialSPDY(t, s, port)
	if text, err := io.ReadAll(data); err != nil || string(text) != "that is all from me" {
		t.Fatalf("got %q, %v", text, err)
	}
	const size = 3_000_000
	if n, err := io.Copy(data, io.LimitReader(zeros{}, size)); err != nil || n != size {
		t.Fatalf("sent %d: %v", n, err)
	}
	if b.active.Load() != 1 {
		t.Error("the connection has ended although the client's direction has not")
	}
	_ = data.Close()
	if n := <-got; n != size {
		t.Errorf("the pod got %d of %d bytes", n, size)
	}
	eventually(t, "the connection ends", func() bool { return b.active.Load() == 0 })
	if text, err := io.ReadAll(errs); err != nil || len(text) > 0 {
		t.Errorf("error stream: %q, %v", text, err)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// TestForwardReset: the pod's reset is told to the client, not passed off as an end.
func TestForwardReset(t *testing.T) {
	b := &local{ended: make(chan error, 1)}
	s := start(t, b, Options{})
	port := listenTCP(t, func(c *net.TCPConn) {
		_, _ = io.ReadFull(c, make([]byte, 1))
		_ = c.SetLinger(0)
	})
	_, data, errs := dialSPDY(t, s, port)
	if _, err := data.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if text, _ := io.ReadAll(errs); !strings.Contains(string(text), "connection reset by peer") {
		t.Errorf("error stream: %q", text)
	}
	if err := <-b.ended; err == nil {
		t.Error("no error")
	}
}

// TestForwardContext: Forward gives up with its context, whatever the stream does.
func TestForwardContext(t *testing.T) {
	b := &local{ended: make(chan error, 1)}
	inner := make(chan context.CancelFunc, 1)
	s := start(t, &cancelling{b, inner}, Options{})
	arrived, closed := make(chan struct{}), make(chan struct{})
	port := listenTCP(t, func(c *net.TCPConn) {
		_, _ = io.ReadFull(c, make([]byte, 1))
		close(arrived)
		_, _ = io.Copy(io.Discard, c)
		close(closed)
	})
	_, data, _ := dialSPDY(t, s, port)
	if _, err := data.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	<-arrived // before it, the connection is only being made
	(<-inner)()
	select {
	case err := <-b.ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("Forward goes on")
	}
	<-closed
}

type cancelling struct {
	*local
	cancel chan context.CancelFunc
}

func (c *cancelling) PortForward(ctx context.Context, pod string, port int32, stream io.ReadWriteCloser) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c.cancel <- cancel
	return c.local.PortForward(ctx, pod, port, stream)
}

// TestForwardOldWebSocket: channels in a WebSocket, ports named in the request.
func TestForwardOldWebSocket(t *testing.T) {
	s := start(t, &local{}, Options{})
	port := listenTCP(t, func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
	dial := func(ports ...int32) (*websocket.Conn, error) {
		url, err := s.PortForward(&runtimeapi.PortForwardRequest{PodSandboxId: "p", Port: ports})
		if err != nil {
			t.Fatal(err)
		}
		return websocket.Dial(strings.Replace(url, "http", "ws", 1), "v4.channel.k8s.io", "http://127.0.0.1")
	}
	if ws, err := dial(); err == nil {
		_ = ws.Close()
		t.Error("a session without ports was opened")
	}
	ws, err := dial(int32(port))
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	_ = ws.SetDeadline(time.Now().Add(patience))
	if err := websocket.Message.Send(ws, []byte("\x00hello")); err != nil {
		t.Fatal(err)
	}
	prefix := string([]byte{byte(port), byte(port >> 8)})
	for _, want := range []string{"\x00" + prefix, "\x01" + prefix, "\x00hello"} {
		var got []byte
		if err := websocket.Message.Receive(ws, &got); err != nil || string(got) != want {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	}
}

// FuzzSessions sends arbitrary WebSocket messages to sessions of both kinds that
// are framed here: nothing may panic, hang, or be left.
func FuzzSessions(f *testing.F) {
	b := &local{}
	s := start(f, b, Options{CreationTimeout: time.Second})
	echo := listenTCP(f, func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
	f.Add(false, []byte("\x05\x00hello\x02\xff\x00"))
	f.Add(false, []byte("\x0c\x04{\"Width\":1}\x02\xff\x09\x01\xff"))
	f.Add(true, []byte("\x0c\x80\x03\x00\x01\x01\x00\x00\x10\x00\x00\x00\x01"))
	f.Add(true, []byte("\x01\x00"))
	f.Fuzz(func(t *testing.T, tunnel bool, data []byte) {
		var url, protocol string
		var err error
		if tunnel {
			url, err = s.PortForward(&runtimeapi.PortForwardRequest{PodSandboxId: "p", Port: []int32{int32(echo)}})
			protocol = portforward.WebsocketsSPDYTunnelingPortForwardV1
		} else {
			url, err = s.Exec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"cat"}, Stdin: true, Stdout: true})
			protocol = "v5.channel.k8s.io"
		}
		if err != nil {
			t.Fatal(err)
		}
		ws, err := websocket.Dial(strings.Replace(url, "http", "ws", 1), protocol, "http://127.0.0.1")
		if err != nil {
			t.Fatal(err)
		}
		go func() { _, _ = io.Copy(io.Discard, ws) }()
		for len(data) > 0 { // a length, then that many bytes
			n := min(int(data[0]), len(data)-1)
			if websocket.Message.Send(ws, data[1:1+n]) != nil {
				break
			}
			data = data[1+n:]
		}
		_ = ws.Close()
		eventually(t, "the session ends", func() bool { return b.active.Load() == 0 })
	})
}
