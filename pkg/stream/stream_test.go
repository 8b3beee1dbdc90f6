package stream

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/pkg/stdio"
)

// client is the path of the test client (tests/stream), made of client-go.
var client string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		klog.SetSlogLogger(slog.New(slog.DiscardHandler)) // the library logs every failed session
		dir, err := os.MkdirTemp("", "subpod-stream-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		client = filepath.Join(dir, "client")
		build := exec.Command("go", "build", "-ldflags", "-s -w", "-o", client, ".")
		build.Dir = filepath.Join("..", "..", "tests", "stream")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build tests/stream: %v\n%s", err, out)
			return 1
		}
		// What runs in parallel here waits, mostly.
		if err := flag.Set("test.parallel", "8"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

// patience is how long the tests wait for what must come at once: they fail then. A busy
// machine may take long for anything.
const patience = time.Minute

// local is a Backend that runs processes on this machine.
type local struct {
	active atomic.Int32
	ended  chan error // one value at the end of each call, when not nil
}

func (l *local) begin() func(error) {
	l.active.Add(1)
	return func(err error) {
		l.active.Add(-1)
		if l.ended != nil {
			l.ended <- err
		}
	}
}

func (l *local) Exec(ctx context.Context, id string, command []string, s stdio.Streams) (exit int32, err error) {
	end := l.begin()
	defer func() { end(err) }()
	c := exec.CommandContext(ctx, command[0], command[1:]...)
	c.Env = append(os.Environ(), "CONTAINER="+id)
	if s.TTY {
		err = runTTY(c, s)
	} else {
		c.Stdout, c.Stderr = s.Stdout, s.Stderr
		if s.Stdin != nil {
			// Not c.Stdin: Wait would wait for a client that never ends its stdin.
			w, err := c.StdinPipe()
			if err != nil {
				return 0, err
			}
			go func() {
				_, _ = io.Copy(w, s.Stdin)
				_ = w.Close()
			}()
		}
		err = c.Run()
	}
	var exitErr *exec.ExitError
	if errors.As(err, &exitErr) && exitErr.Exited() {
		return int32(exitErr.ExitCode()), nil
	}
	return 0, err
}

// runTTY runs c on a new terminal.
func runTTY(c *exec.Cmd, s stdio.Streams) error {
	ptmx, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	defer ptmx.Close()
	if err := unix.IoctlSetPointerInt(int(ptmx.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		return err
	}
	n, err := unix.IoctlGetInt(int(ptmx.Fd()), unix.TIOCGPTN)
	if err != nil {
		return err
	}
	pts, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	c.Stdin, c.Stdout, c.Stderr = pts, pts, pts
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	err = c.Start()
	_ = pts.Close()
	if err != nil {
		return err
	}
	raw, err := ptmx.SyscallConn() // which a Close in between does not harm
	if err != nil {
		return err
	}
	go func() {
		for size := range s.Resize {
			_ = raw.Control(func(fd uintptr) {
				_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Col: size.Width, Row: size.Height})
			})
		}
	}()
	if s.Stdin != nil {
		go func() { _, _ = io.Copy(ptmx, s.Stdin) }()
	}
	_, _ = io.Copy(s.Stdout, ptmx) // EIO at the end
	return c.Wait()
}

// Attach is an upper-casing process that says first that it is there.
func (l *local) Attach(ctx context.Context, id string, s stdio.Streams) error {
	_, err := l.Exec(ctx, id, []string{"sh", "-c", "echo attached to $CONTAINER; exec tr a-z A-Z"}, s)
	return err
}

func (l *local) PortForward(ctx context.Context, _ string, port int32, stream io.ReadWriteCloser) (err error) {
	end := l.begin()
	defer func() { end(err) }()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return err
	}
	return netns.Forward(ctx, stream, conn)
}

// start serves backend on a loopback port until the test ends, and checks that
// no goroutine of a session is left then.
func start(t testing.TB, backend Backend, o Options) *Server {
	t.Helper()
	ls, err := Listen(netip.MustParseAddr("127.0.0.1"), 0, net.Listen)
	if err != nil {
		t.Fatal(err)
	}
	o.BaseURL = "http://" + ls[0].Addr().String()
	o.Log = slog.New(slog.DiscardHandler)
	s, err := New(backend, o)
	if err != nil {
		t.Fatal(err)
	}
	// Cleanups run in reverse: this one after all servers of the test are closed.
	checkedOnce.Lock()
	if !checked[t] {
		checked[t] = true
		t.Cleanup(func() { checkGoroutines(t) })
	}
	checkedOnce.Unlock()
	served := make(chan error, 1)
	go func() { served <- s.Serve(ls...) }()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return s
}

// checked has the tests at whose end checkGoroutines is called.
var (
	checkedOnce sync.Mutex
	checked     = map[testing.TB]bool{}
)

// checkGoroutines waits for the goroutines of all sessions to end.
func checkGoroutines(t testing.TB) {
	t.Helper()
	var left []string
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		buf := make([]byte, 4<<20)
		left = left[:0]
		for g := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			// spdystream v0.5.1 never wakes who closes a stream at the moment in
			// which the client resets it: nothing of ours can end that.
			if strings.Contains(g, "spdystream.(*Stream).waitWriteReply") || strings.Contains(g, "pkg/stream.vanish") {
				continue
			}
			for _, ours := range []string{"spdystream", "wsstream", "cri-streaming", "pkg/stream.(*", "pkg/stream.latest", "pkg/stream.readSizes", "netns.Forward", "netns.(*forward)"} {
				if strings.Contains(g, ours) && !strings.Contains(g, "testing.(*T)") && !strings.Contains(g, "testing.tRunner") {
					left = append(left, g)
					break
				}
			}
		}
		if len(left) == 0 {
			return
		}
	}
	t.Errorf("%d goroutines are left:\n%s", len(left), strings.Join(left, "\n\n"))
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Errorf("not after %s: %s", patience, what)
}

// transports are the ways to a command session, as flags of the client.
var transports = map[string][]string{
	"SPDY":         nil,
	"WebSocket v5": {"-ws"},
	"WebSocket v4": {"-ws", "-protocol=v4.channel.k8s.io"},
}

// result is what a client process said.
type result struct {
	stdout, stderr string
	exit           int
}

func runClient(t *testing.T, stdin io.Reader, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	var out, errb bytes.Buffer
	c := exec.CommandContext(ctx, client, args...)
	c.Stdin, c.Stdout, c.Stderr = stdin, &out, &errb
	err := c.Run()
	if ctx.Err() != nil {
		t.Fatalf("client %v did not end; stdout %.200q, stderr %.200q", args, out.String(), errb.String())
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{out.String(), errb.String(), c.ProcessState.ExitCode()}
}

// runClientTo runs the client with its output to w.
func runClientTo(t *testing.T, stdin io.Reader, w io.Writer, args ...string) (exit int, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	c := exec.CommandContext(ctx, client, args...)
	c.Stdin, c.Stdout = stdin, w
	err = c.Run()
	if exitErr := (*exec.ExitError)(nil); errors.As(err, &exitErr) {
		return exitErr.ExitCode(), ctx.Err()
	}
	return 0, err
}

func TestExec(t *testing.T) {
	s := start(t, &local{}, Options{})
	big := bytes.Repeat([]byte("0123456789abcdef"), 512<<10) // 8 MiB
	cases := []struct {
		name    string
		cmd     string
		stdin   io.Reader
		tty     bool
		want    result
		needEnd bool // of stdin, which version 4 over a WebSocket cannot say
	}{
		{name: "outputs apart and exit code", cmd: "echo out-$CONTAINER; echo err >&2; exit 3", want: result{"out-c1\n", "err\n", 3}},
		{name: "success", cmd: "exit 0"},
		{name: "exit code 255", cmd: "exit 255", want: result{exit: 255}},
		{name: "stdin to its end", cmd: "wc -c", stdin: bytes.NewReader(big), needEnd: true, want: result{"8388608\n", "", 0}},
		{name: "stdin not read", cmd: "exec <&-; echo done", stdin: bytes.NewReader(big), want: result{"done\n", "", 0}},
		{name: "stdin by count", cmd: "head -c 8388608 | cksum", stdin: bytes.NewReader(big), want: result{"4178571020 8388608\n", "", 0}},
		{name: "much output", cmd: "head -c 20000000 /dev/zero | tr '\\0' x; exit 7", want: result{strings.Repeat("x", 20000000), "", 7}},
		{name: "terminal and its size", tty: true, stdin: strings.NewReader(""),
			cmd:  `test -t 0 && while test "$(stty size)" != "50 132"; do sleep 0.02; done; echo ok; exit 5`,
			want: result{"ok\r\n", "", 5}},
	}
	// The sum above is what cksum(1) itself says of these bytes.
	if out, err := exec.Command("sh", "-c", "yes 0123456789abcdef | tr -d '\\n' | head -c 8388608 | cksum").Output(); err != nil {
		t.Fatal(err)
	} else {
		cases[5].want.stdout = string(out)
	}
	for name, flags := range transports {
		for _, c := range cases {
			if c.needEnd && name == "WebSocket v4" {
				continue
			}
			t.Run(name+"/"+c.name, func(t *testing.T) {
				url, err := s.Exec(&runtimeapi.ExecRequest{ContainerId: "c1", Cmd: []string{"sh", "-c", c.cmd},
					Stdin: c.stdin != nil, Stdout: true, Stderr: !c.tty, Tty: c.tty})
				if err != nil {
					t.Fatal(err)
				}
				args := append([]string{}, flags...)
				if c.stdin != nil {
					args = append(args, "-stdin")
					if seeker, ok := c.stdin.(io.Seeker); ok {
						_, _ = seeker.Seek(0, io.SeekStart)
					}
				}
				if c.tty {
					args = append(args, "-tty")
				}
				got := runClient(t, c.stdin, append(args, "command", url)...)
				if c.name == "stdin not read" {
					got.stderr = "" // the client may complain of what it could not send
				}
				if got != c.want {
					t.Errorf("got  %.200q\nwant %.200q", fmt.Sprint(got), fmt.Sprint(c.want))
				}
			})
		}
	}
}

func TestExecThatCannotRun(t *testing.T) {
	s := start(t, &local{}, Options{})
	for name, flags := range transports {
		t.Run(name, func(t *testing.T) {
			url, err := s.Exec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"/no/such/command"}, Stdout: true, Stderr: true})
			if err != nil {
				t.Fatal(err)
			}
			got := runClient(t, nil, append(flags, "command", url)...)
			if got.exit != 125 || !strings.Contains(got.stderr, "/no/such/command: no such file") {
				t.Errorf("got %+v", got)
			}
		})
	}
}

func TestAttach(t *testing.T) {
	s := start(t, &local{}, Options{})
	for name, flags := range transports {
		if name == "WebSocket v4" {
			continue // stdin has no end there
		}
		t.Run(name, func(t *testing.T) {
			url, err := s.Attach(&runtimeapi.AttachRequest{ContainerId: "c9", Stdin: true, Stdout: true, Stderr: true})
			if err != nil {
				t.Fatal(err)
			}
			got := runClient(t, strings.NewReader("hello\n"), append(flags, "-stdin", "command", url)...)
			if want := (result{"attached to c9\nHELLO\n", "", 0}); got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
}

// TestClientGone: a session ends with its client, however quiet it is.
func TestClientGone(t *testing.T) {
	for name, flags := range transports {
		for _, stdin := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/stdin %v", name, stdin), func(t *testing.T) {
				b := &local{ended: make(chan error, 1)}
				s := start(t, b, Options{})
				url, err := s.Exec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"sh", "-c", "echo $$; exec sleep 1000"}, Stdin: stdin, Stdout: true, Stderr: true})
				if err != nil {
					t.Fatal(err)
				}
				args := flags
				if stdin {
					args = append([]string{"-stdin"}, flags...)
				}
				c := exec.Command(client, append(args, "command", url)...)
				if stdin {
					w, err := c.StdinPipe()
					if err != nil {
						t.Fatal(err)
					}
					defer w.Close()
				}
				out, err := c.StdoutPipe()
				if err != nil {
					t.Fatal(err)
				}
				if err := c.Start(); err != nil {
					t.Fatal(err)
				}
				var pid int
				if _, err := fmt.Fscan(out, &pid); err != nil {
					t.Fatal(err)
				}
				_ = c.Process.Kill()
				_ = c.Wait()
				select {
				case <-b.ended:
				case <-time.After(patience):
					t.Fatal("the exec outlives its client")
				}
				if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
					t.Errorf("process %d: %v", pid, err)
				}
			})
		}
	}
}

func TestIdleTimeout(parent *testing.T) {
	for name, flags := range transports {
		parent.Run(name, func(t *testing.T) {
			t.Parallel()
			b := &local{ended: make(chan error, 1)}
			s := start(parent, b, Options{IdleTimeout: 3 * time.Second})
			url, err := s.Exec(&runtimeapi.ExecRequest{ContainerId: "c", Stdout: true, Stderr: true,
				// Longer than the timeout, but not idle; then idle.
				Cmd: []string{"sh", "-c", "for i in 1 2 3 4 5 6 7; do sleep 0.5; echo $i; done; exec sleep 1000"}})
			if err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			got := runClient(t, nil, append(flags, "command", url)...)
			if got.stdout != "1\n2\n3\n4\n5\n6\n7\n" || time.Since(began) < 6400*time.Millisecond {
				t.Errorf("got %+v after %s", got, time.Since(began))
			}
			select {
			case <-b.ended:
			case <-time.After(patience):
				t.Error("the exec goes on although its session has ended")
			}
		})
	}
}

// TestClose: sessions end with the server, and Close waits for them.
func TestClose(t *testing.T) {
	b := &local{ended: make(chan error, 1)}
	s := start(t, b, Options{})
	url, err := s.Exec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"sleep", "1000"}, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { runClient(t, nil, "-stderr=false", "command", url) })
	eventually(t, "the session is open", func() bool { return b.active.Load() == 1 })
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if n := b.active.Load(); n != 0 {
		t.Errorf("%d sessions are open after Close", n)
	}
	wg.Wait()
	if _, err := s.Exec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"x"}, Stdout: true}); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}
