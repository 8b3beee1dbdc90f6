package oci

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/subpod/subpod/pkg/stdio"
)

// attached is an attach that runs in the background.
type attached struct {
	in       *io.PipeWriter
	out, err syncBuffer
	sizes    chan stdio.TerminalSize
	cancel   context.CancelFunc
	done     chan error
}

func (b *box) attach(stdin bool) *attached {
	b.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	a := &attached{cancel: cancel, done: make(chan error, 1), sizes: make(chan stdio.TerminalSize, 10)}
	ready := make(chan struct{})
	s := stdio.Streams{Stdout: &a.out, Stderr: &a.err, TTY: b.ctr.Terminal, Resize: a.sizes, Attached: func() { close(ready) }}
	if stdin {
		s.Stdin, a.in = io.Pipe()
	}
	go func() { a.done <- b.Attach(ctx, b.id, b.ctr, s) }()
	b.t.Cleanup(func() {
		cancel()
		if a.in != nil {
			a.in.Close()
		}
	})
	select {
	case <-ready: // what the container writes from now on arrives
	case err := <-a.done:
		b.t.Fatalf("attach: %v", err)
	}
	return a
}

func TestAttachStreams(t *testing.T) { eachMonitor(t, testAttachStreams) }

func testAttachStreams(t *testing.T, e *Executor) {
	b := create(t, e, container{stdin: true, stdinOnce: true, args: sh("while read x; do echo out $x; echo err $x >&2; done; echo eof; exit 4")})
	a := b.attach(true)
	b.start()
	_, _ = io.WriteString(a.in, "one\n")
	eventually(t, "both streams arrive", func() bool { return a.out.String() == "out one\n" && a.err.String() == "err one\n" })
	// The end of stdin reaches the container, and its output still comes.
	a.in.Close()
	if err := <-a.done; err != nil {
		t.Error(err)
	}
	if x := b.wait(); x.Code != 4 || !strings.HasSuffix(a.out.String(), "eof\n") {
		t.Errorf("exit %+v, output %q", x, a.out.String())
	}
	if err := e.Attach(context.Background(), b.id, b.ctr, stdio.Streams{}); !errors.Is(err, ErrNotRunning) {
		t.Errorf("attach after the end: %v, want ErrNotRunning", err)
	}
}

func TestAttachAgain(t *testing.T) { eachMonitor(t, testAttachAgain) }

func testAttachAgain(t *testing.T, e *Executor) {
	b := create(t, e, container{stdin: true, args: sh("while read x; do echo got $x; done")}).start()
	first := b.attach(true)
	_, _ = io.WriteString(first.in, "1\n")
	eventually(t, "the first client's line", func() bool { return strings.Contains(first.out.String(), "got 1") })
	first.in.Close() // not stdin_once: the container's stdin stays open
	watcher := b.attach(false)
	second := b.attach(true)
	_, _ = io.WriteString(second.in, "2\n")
	eventually(t, "all clients see the second client's line", func() bool {
		return strings.Contains(first.out.String(), "got 2") && strings.Contains(second.out.String(), "got 2") &&
			strings.Contains(watcher.out.String(), "got 2")
	})
	for _, a := range []*attached{first, second, watcher} {
		a.cancel()
		if err := <-a.done; !errors.Is(err, context.Canceled) {
			t.Errorf("detached client: %v", err)
		}
	}
	if r, err := b.exec(0, "/bin/true"); err != nil || r.ExitCode != 0 || !b.ctr.Init.Alive() {
		t.Errorf("after all clients have gone: %+v, %v", r, err)
	}
}

func TestAttachTerminal(t *testing.T) { eachMonitor(t, testAttachTerminal) }

func testAttachTerminal(t *testing.T, e *Executor) {
	b := create(t, e, container{terminal: true, stdin: true, args: sh("while read x; do stty size; done")}).start()
	a := b.attach(true)
	for _, s := range []stdio.TerminalSize{{Width: 10, Height: 10}, {Width: 20, Height: 20}, {Width: 30, Height: 30}, {Width: 90, Height: 33}} {
		a.sizes <- s
	}
	eventually(t, "the last of several fast resizes holds", func() bool {
		_, _ = io.WriteString(a.in, "x\n")
		time.Sleep(20 * time.Millisecond)
		return strings.Contains(a.out.String(), "33 90\r\n")
	})
	if err := b.Signal(context.Background(), b.id, b.ctr, syscall.SIGKILL, false); err != nil {
		t.Fatal(err)
	}
	if err := <-a.done; err != nil {
		t.Error(err)
	}
	b.wait()
}

// A client that does not read must not keep the exit code back.
func TestAttachSlowClient(t *testing.T) { eachMonitor(t, testAttachSlowClient) }

func testAttachSlowClient(t *testing.T, e *Executor) {
	b := create(t, e, container{args: sh("yes & sleep 1; exit 5")})
	r, w := io.Pipe() // nobody reads
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- e.Attach(ctx, b.id, b.ctr, stdio.Streams{Stdout: w}) }()
	time.Sleep(100 * time.Millisecond)
	b.start()
	if x := b.wait(); x.Code != 5 || x.Unknown {
		t.Errorf("exit %+v, want 5", x)
	}
	r.Close()
	<-done
}

func TestAttachLongPath(t *testing.T) { eachMonitor(t, testAttachLongPath) }

func testAttachLongPath(t *testing.T, e *Executor) {
	s := createSpec(t, e, container{stdin: true, args: sh("read x; echo $x; exit 0")})
	s.Bundle = filepath.Join(e.runDir, strings.Repeat("long/", 40), s.ID)
	f, err := createAs(context.Background(), e, s)
	if err != nil {
		t.Fatal(err)
	}
	b := &box{Executor: e, t: t, id: s.ID, ctr: f}
	t.Cleanup(func() {
		if err := e.Delete(context.Background(), s.ID, f); err != nil {
			t.Error(err)
		}
	})
	a := b.attach(true)
	b.start()
	_, _ = io.WriteString(a.in, "hello\n")
	eventually(t, "the line comes back", func() bool { return a.out.String() == "hello\n" })
	b.wait()
}

func TestReopenLog(t *testing.T) { eachMonitor(t, testReopenLog) }

func testReopenLog(t *testing.T, e *Executor) {
	b := create(t, e, container{stdin: true, terminal: true, args: sh("stty -echo; echo first; while read x; do echo $x; done")}).start()
	a := b.attach(true)
	eventually(t, "the first line is in the log", func() bool { return len(b.logLines()) == 1 })
	// Without a rotation there is nothing to do, and nothing to lose.
	if err := e.ReopenLog(context.Background(), b.id, b.ctr); err != nil || len(b.logLines()) != 1 {
		t.Errorf("reopen without rotation: %v, log %q", err, b.logLines())
	}
	for i := range 20 {
		if err := os.Rename(b.log, b.log+".old"); err != nil {
			t.Fatal(err)
		}
		a.sizes <- stdio.TerminalSize{Width: 80, Height: uint16(20 + i)} // disturbs conmon's reading of its fifo
		if err := e.ReopenLog(context.Background(), b.id, b.ctr); err != nil {
			t.Fatal(err)
		}
		if st, err := os.Stat(b.log); err != nil || st.Size() != 0 {
			t.Fatalf("rotation %d: new log %v, %v", i, st, err)
		}
	}
	_, _ = io.WriteString(a.in, "second\n")
	eventually(t, "the next line is in the new log", func() bool {
		l := b.logLines() // the terminal may deliver the end of the line by itself
		return len(l) > 0 && strings.HasSuffix(strings.TrimSpace(l[0]), " second")
	})
	if err := b.Signal(context.Background(), b.id, b.ctr, syscall.SIGKILL, false); err != nil {
		t.Fatal(err)
	}
	b.wait()
	if err := os.Rename(b.log, b.log+".old"); err != nil {
		t.Fatal(err)
	}
	if err := e.ReopenLog(context.Background(), b.id, b.ctr); !errors.Is(err, ErrNotRunning) {
		t.Errorf("reopen after the end: %v, want ErrNotRunning", err)
	}
	if _, err := os.Stat(b.log); !os.IsNotExist(err) {
		t.Error("a log was made although the reopen failed")
	}
}
