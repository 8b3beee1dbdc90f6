package stream

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// TestClientsThatVanish: clients that die while they open their streams leave no
// session, and Close does not wait for them.
func TestClientsThatVanish(t *testing.T) {
	b := &local{}
	// A stream that the library comes to after this time blocks in it forever
	// (k8s.io/cri-streaming v0.37.2, createHTTPStreamStreams): 200 clients at once
	// must be served within it.
	s := start(t, b, Options{CreationTimeout: 5 * slowdown * time.Second, CloseTimeout: time.Second})
	var wg sync.WaitGroup
	for i := range 200 {
		url, err := s.Exec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"true"}, Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() { vanish(t, url, func() { time.Sleep(time.Duration(i) * 10 * time.Microsecond) }) })
	}
	wg.Wait()
	done := make(chan struct{})
	go func() { s.sessions.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Error("sessions are left of clients that are gone")
	}
	eventually(t, "all connections are closed", func() bool { return s.connections() == 0 })
}

// vanish opens the streams of an exec, and closes the connection once stay has returned.
func vanish(t *testing.T, url string, stay func()) {
	host, path, _ := strings.Cut(strings.TrimPrefix(url, "http://"), "/")
	raw, err := net.Dial("tcp", host)
	if err != nil {
		t.Error(err)
		return
	}
	defer raw.Close()
	_, _ = fmt.Fprintf(raw, "POST /%s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n%s: %s\r\n\r\n",
		path, host, httpstream.HeaderProtocolVersion, remotecommand.StreamProtocolV4Name)
	r := bufio.NewReader(raw)
	if resp, err := http.ReadResponse(r, nil); err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Errorf("upgrade: %v", err)
		return
	}
	conn, err := spdy.NewClientConnection(buffered{raw, r})
	if err != nil {
		t.Error(err)
		return
	}
	for _, kind := range []string{remotecommand.StreamTypeError, remotecommand.StreamTypeStdout} {
		h := http.Header{}
		h.Set(remotecommand.StreamType, kind)
		go func() {
			if stream, err := conn.CreateStream(h); err == nil { // 30 s when there is no reply
				_, _ = io.Copy(io.Discard, stream)
			}
		}()
	}
	stay()
}

type buffered struct {
	net.Conn
	r *bufio.Reader
}

func (b buffered) Read(p []byte) (int, error) { return b.r.Read(p) }

// TestClientGoneAtTheStart: clients that hang up at the moment in which their command
// is to begin. The race detector sees whether the server, which waits for the command's
// end, and the session, which begins it, agree whether it runs.
func TestClientGoneAtTheStart(t *testing.T) {
	b := &local{}
	s := start(t, b, Options{})
	for range 100 {
		url, err := s.Exec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"cat"}, Stdin: true, Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		ws, err := websocket.Dial(strings.Replace(url, "http", "ws", 1), remotecommand.StreamProtocolV5Name, "http://127.0.0.1")
		if err != nil {
			t.Fatal(err)
		}
		_ = ws.Close()
	}
	eventually(t, "all sessions end", func() bool { return b.active.Load() == 0 && s.connections() == 0 })
}

// TestTooManySessions: sessions beyond the limit are refused. Connections are at most
// twice as many: for the next one, the oldest without a session is closed.
func TestTooManySessions(t *testing.T) {
	b := &local{}
	s := start(t, b, Options{MaxSessions: 2})
	open := func() string {
		t.Helper()
		url, err := s.Exec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"sleep", "1000"}, Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		return url
	}
	over := make(chan struct{})
	var clients sync.WaitGroup
	defer func() { close(over); clients.Wait() }()
	for range 2 {
		url := open()
		clients.Go(func() { vanish(t, url, func() { <-over }) })
	}
	eventually(t, "two sessions are open", func() bool { return b.active.Load() == 2 })
	got := runClient(t, nil, "-stderr=false", "command", open())
	if got.exit != 125 || !strings.Contains(got.stderr, ErrTooMany.Error()) {
		t.Errorf("the third session: %+v", got)
	}
	eventually(t, "the third one's connection is closed", func() bool { return s.connections() == 2 })
	var idle []net.Conn
	for i := range 2 {
		c, err := net.Dial("tcp", s.address())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		idle = append(idle, c)
		eventually(t, "one more connection is open", func() bool { return s.connections() == 3+i })
	}
	c, err := net.Dial("tcp", s.address())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = idle[0].SetDeadline(time.Now().Add(8 * time.Second)) // the server's own is 10 s
	if _, err := idle[0].Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("the oldest idle connection is open: %v", err)
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write([]byte("GET /exec/none HTTP/1.1\r\nHost: x\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(make([]byte, 100)); n == 0 || err != nil {
		t.Errorf("the fifth connection is not served: %v", err)
	}
}
