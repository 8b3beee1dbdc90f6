package stream

import (
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// forwards are the ways to a port-forward session, as flags of the client.
var forwards = map[string][]string{"SPDY": nil, "WebSocket": {"-ws"}}

// random returns a source of size bytes that depend on seed only.
func random(seed byte, size int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{seed}), size)
}

func sum(r io.Reader) string {
	h := sha256.New()
	n, err := io.Copy(h, r)
	return fmt.Sprintf("%d bytes, %x, %v", n, h.Sum(nil), err)
}

// inBursts reads nothing until the writers before it have filled their buffers,
// once in every so many bytes: a reader that is slower than the writer, whatever the machine.
type inBursts struct {
	io.Reader
	every, left int
}

func (r *inBursts) Read(p []byte) (int, error) {
	if r.left <= 0 {
		time.Sleep(100 * time.Millisecond)
		r.left = r.every
	}
	n, err := r.Reader.Read(p[:min(len(p), 4<<10)])
	r.left -= n
	return n, err
}

// TestForwardBothWays: 64 MiB each way at once, with a slow reader at either
// end, and neither direction's end ends the other.
func TestForwardBothWays(parent *testing.T) {
	const size = 64 << 20
	for name, flags := range forwards {
		for _, slow := range []string{"client", "pod"} {
			parent.Run(name+"/slow "+slow, func(t *testing.T) {
				t.Parallel()
				b := &local{}
				s := start(parent, b, Options{})
				reader := func(who string, r io.Reader) io.Reader {
					if who == slow {
						return &inBursts{Reader: r, every: 8 << 20}
					}
					return r
				}
				inPod := make(chan string, 1)
				port := listenTCP(t, func(c *net.TCPConn) {
					received := make(chan string)
					go func() { received <- sum(reader("pod", c)) }()
					_, _ = io.Copy(c, random(1, size))
					// client-go ends both directions with the pod's: it must be last.
					inPod <- <-received
				})
				local, stderr, _ := forwardWith(t, s, port, flags...)
				conn, err := net.Dial("tcp", local)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(2 * patience))
				go func() {
					_, _ = io.Copy(conn, random(2, size))
					_ = conn.(*net.TCPConn).CloseWrite()
				}()
				if got, want := sum(reader("client", conn)), sum(random(1, size)); got != want {
					t.Errorf("the client got  %s\nwant            %s; client's stderr: %s", got, want, stderr)
				}
				select {
				case got := <-inPod:
					if want := sum(random(2, size)); got != want {
						t.Errorf("the pod got  %s\nwant         %s", got, want)
					}
				case <-time.After(2 * patience):
					t.Error("the pod does not see the end of the client's data")
				}
				eventually(t, "the connection ends", func() bool { return b.active.Load() == 0 })
			})
		}
	}
}

// TestForwardPodClosesEarly: a pod that answers and closes while the client
// still sends: the answer arrives in full.
func TestForwardPodClosesEarly(t *testing.T) {
	const size = 24 << 20
	s := start(t, &local{}, Options{})
	port := listenTCP(t, func(c *net.TCPConn) {
		_, _ = io.ReadFull(c, make([]byte, 1))
		_, _ = io.Copy(c, random(1, size))
		// A close with unread data resets the connection, and throws away what
		// the other side's kernel has not got yet: that is not what is tested.
		raw, err := c.SyscallConn()
		for left := 1; err == nil && left > 0; time.Sleep(time.Millisecond) {
			_ = raw.Control(func(fd uintptr) { left, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
		}
	})
	_, data, _ := dialSPDY(t, s, port)
	go func() { _, _ = io.Copy(data, zeros{}) }()
	if got, want := sum(&inBursts{Reader: data, every: 2 << 20}), sum(random(1, size)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// TestForwardClientResets: a client that resets its stream ends the connection,
// whether the pod goes on sending or is silent.
func TestForwardClientResets(t *testing.T) {
	for _, quiet := range []bool{false, true} {
		t.Run(fmt.Sprintf("quiet %v", quiet), func(t *testing.T) {
			b := &local{ended: make(chan error, 1)}
			s := start(t, b, Options{})
			port := listenTCP(t, func(c *net.TCPConn) {
				_, _ = c.Write(make([]byte, 100))
				if !quiet {
					_, _ = io.Copy(c, zeros{})
					return
				}
				_, _ = io.Copy(io.Discard, c) // the end, and then nothing
				<-t.Context().Done()
			})
			_, data, _ := dialSPDY(t, s, port)
			if _, err := io.ReadFull(data, make([]byte, 100)); err != nil {
				t.Fatal(err)
			}
			if err := data.Reset(); err != nil {
				t.Fatal(err)
			}
			select {
			case err := <-b.ended:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(2 * patience):
				t.Error("the connection goes on although nobody takes its data")
			}
		})
	}
}

// TestForwardTruncated: a client that is killed in the middle of an upload does
// not look like one that has finished it.
func TestForwardTruncated(t *testing.T) {
	for name, flags := range forwards {
		t.Run(name, func(t *testing.T) {
			s := start(t, &local{}, Options{})
			got := make(chan error, 1)
			first := make(chan struct{})
			port := listenTCP(t, func(c *net.TCPConn) {
				_, _ = io.ReadFull(c, make([]byte, 1000))
				close(first)
				_, err := io.Copy(io.Discard, c)
				got <- err
			})
			local, _, stop := forwardWith(t, s, port, flags...)
			conn, err := net.Dial("tcp", local)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			go func() { _, _ = io.Copy(conn, zeros{}) }()
			<-first
			stop(true)
			select {
			case err := <-got:
				if err == nil {
					t.Error("the pod saw the end of the data, not a reset")
				}
			case <-time.After(2 * patience):
				t.Error("the connection into the pod outlives its client")
			}
		})
	}
}

// TestExecBothWays: 64 MiB through a command, checked at both ends.
func TestExecBothWays(t *testing.T) {
	const size = 64 << 20
	s := start(t, &local{}, Options{})
	for _, name := range []string{"SPDY", "WebSocket v5"} { // stdin has no end in v4
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url, err := s.Exec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"sh", "-c", "cat; exit 3"}, Stdin: true, Stdout: true, Stderr: true})
			if err != nil {
				t.Fatal(err)
			}
			pr, pw := io.Pipe()
			done := make(chan string)
			go func() { done <- sum(&inBursts{Reader: pr, every: 8 << 20}) }()
			exit, err := runClientTo(t, random(3, size), pw, append([]string{"-stdin"}, append(transports[name], "command", url)...)...)
			_ = pw.Close()
			if got, want := <-done, sum(random(3, size)); got != want || exit != 3 || err != nil {
				t.Errorf("got  %s, exit %d, %v\nwant %s, exit 3", got, exit, err, want)
			}
		})
	}
}
