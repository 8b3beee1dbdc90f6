package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/subpod/subpod/pkg/stdio"
)

func TestExecSync(t *testing.T) {
	eachHandler(t, func(t *testing.T, handler string) {
		e := executor(t)
		b := create(t, e, container{handler: handler}).start()
		r, err := b.exec(0, sh("echo out; echo err >&2; exit 9")...)
		if err != nil || r.ExitCode != 9 || string(r.Stdout) != "out\n" || string(r.Stderr) != "err\n" {
			t.Errorf("%q %q %d %v", r.Stdout, r.Stderr, r.ExitCode, err)
		}
		if r, err := b.exec(0, sh("kill -TERM $$")...); err != nil || r.ExitCode != 128+15 {
			t.Errorf("killed by a signal: %+v, %v; want code 143", r, err)
		}
		// What a command writes to stderr is not a runtime's failure, also when
		// it looks like one.
		r, err = b.exec(0, sh(`echo '{"level":"error","msg":"executable file not found in $PATH"}' >&2; exit 1`)...)
		if err != nil || r.ExitCode != 1 {
			t.Errorf("forged failure: %+v, %v", r, err)
		}
	})
}

func TestExecRightAfterStart(t *testing.T) { eachMonitor(t, testExecRightAfterStart) }

func testExecRightAfterStart(t *testing.T, e *Executor) {
	for range 20 {
		b := create(t, e, container{noLog: true}).start()
		if r, err := b.exec(0, "/bin/true"); err != nil || r.ExitCode != 0 {
			t.Fatalf("exec right after the start: %+v, %v", r, err)
		}
	}
}

func TestExecErrors(t *testing.T) {
	eachHandler(t, func(t *testing.T, handler string) {
		e := executor(t)
		b := create(t, e, container{handler: handler}).start()
		for _, cmd := range []string{"/no/such", "nosuch"} {
			_, err := b.exec(0, cmd)
			var rerr *RuntimeError
			if !errors.As(err, &rerr) || !errors.Is(err, ErrCommandNotFound) || rerr.Op != "exec" {
				t.Errorf("%s: %v", cmd, err)
			}
		}
		_, err := b.exec(0, "/bin/notexec")
		var rerr *RuntimeError
		if !errors.As(err, &rerr) || errors.Is(err, ErrCommandNotFound) || !strings.Contains(strings.ToLower(rerr.Message), "permission denied") {
			t.Errorf("not executable: %v", err)
		}
	})
}

func TestExecAsUser(t *testing.T) {
	eachHandler(t, func(t *testing.T, handler string) {
		e := executor(t)
		b := create(t, e, container{handler: handler}).start()
		p := b.process(sh("id -u; echo x > /dev/stdout")...)
		p.User.UID, p.User.GID = 1000, 1000
		p.Capabilities = nil
		r, err := e.ExecSync(context.Background(), b.id, b.ctr, ExecSpec{Process: p})
		if err != nil || string(r.Stdout) != "1000\nx\n" {
			t.Errorf("%q %q %v", r.Stdout, r.Stderr, err)
		}
	})
}

func TestExecOutputIsBounded(t *testing.T) { eachMonitor(t, testExecOutputIsBounded) }

func testExecOutputIsBounded(t *testing.T, e *Executor) {
	b := create(t, e, container{}).start()
	r, err := b.exec(0, sh("yes | head -c 17825792; exit 2")...)
	if err != nil || r.ExitCode != 2 || len(r.Stdout) != maxOutput {
		t.Errorf("%d bytes, code %d, %v; want %d bytes, code 2", len(r.Stdout), r.ExitCode, err, maxOutput)
	}
	r, err = e.ExecSync(context.Background(), b.id, b.ctr, ExecSpec{Process: b.process(sh("yes | head -c 100000; exit 2")...), MaxOutput: 4096})
	if err != nil || r.ExitCode != 2 || len(r.Stdout) != 4096 {
		t.Errorf("%d bytes, code %d, %v; want 4096 bytes, code 2", len(r.Stdout), r.ExitCode, err)
	}
}

// TestExecUnfed: where the server ends before it has said what to execute, nothing is, and
// the runtime does not stay.
func TestExecUnfed(t *testing.T) {
	e := executor(t)
	b := create(t, e, container{}).start()
	process, err := json.Marshal(b.process("/bin/sleep", "1000"))
	check(t, err)
	for _, told := range [][]byte{nil, process[:len(process)/2]} {
		x := &execution{rt: e.handlers["crun"], ctr: b.ctr, dir: t.TempDir()}
		theirs, err := x.prepareRuntime(e, b.id, nil)
		check(t, err)
		x.cmd.ExtraFiles = []*os.File{theirs}
		_, err = startCommand(x.cmd, filters{confined: b.ctr.Confined})
		check(t, err)
		theirs.Close()
		_, err = x.feed.Write(told)
		check(t, err, x.feed.Close())
		ended := make(chan error, 1)
		go func() { ended <- x.cmd.Wait() }()
		select {
		case err := <-ended:
			if err == nil || x.failure() == "" {
				t.Errorf("told %q: %v, %q; want an error with the runtime's message", told, err, x.failure())
			}
		case <-time.After(time.Minute):
			_ = x.cmd.Process.Kill()
			<-ended
			t.Errorf("told %q: the runtime waits", told)
		}
		// What the runtime had begun ends with it, or a moment later.
		eventually(t, fmt.Sprintf("told %q: init is alone", told), func() bool {
			members, err := b.ctr.members()
			return err == nil && len(members) == 1
		})
	}
}

// TestExecBegun: what says that a command has begun comes while it runs, and not from one
// that cannot be executed, however long that takes the runtime to find out.
func TestExecBegun(t *testing.T) {
	for _, c := range []container{{handler: "crun"}, {handler: "runc"}, {handler: "crun", pid: "host"}} {
		t.Run(c.handler+"/"+c.pid, func(t *testing.T) {
			e := executor(t)
			b := create(t, e, c).start()
			begun := make(chan struct{})
			ended := make(chan error, 1)
			go func() {
				code, err := e.Exec(context.Background(), b.id, b.ctr, b.process(sh("until [ -e /go ]; do sleep 0.02; done; exit 7")...),
					stdio.Streams{Stdout: io.Discard, Begun: func() { close(begun) }})
				if err == nil && code != 7 {
					err = fmt.Errorf("exit code %d, want 7", code)
				}
				ended <- err
			}()
			select {
			case <-begun:
				check(t, os.WriteFile(filepath.Join(b.ctr.Rootfs, "go"), nil, 0o644))
			case err := <-ended:
				t.Fatalf("it has ended and not begun: %v", err)
			}
			check(t, <-ended)
			nowhere := b.process("/bin/sleep", "1000")
			nowhere.Cwd = "/bin/sleep"
			_, err := e.Exec(context.Background(), b.id, b.ctr, nowhere, stdio.Streams{Begun: func() { t.Error("what cannot be executed has begun") }})
			if err == nil {
				t.Error("executed in a directory that is none")
			}
		})
	}
}

// A child that goes on in the background and holds the output must not hold up
// the answer, and must not be killed.
func TestExecDoesNotWaitForDaemons(t *testing.T) {
	for _, c := range []container{{handler: "crun"}, {handler: "runc"}, {handler: "crun", pid: "host"}, {handler: "runc", pid: "host"}} {
		t.Run(c.handler+"/"+c.pid, func(t *testing.T) {
			e := executor(t)
			b := create(t, e, c).start()
			r, err := b.exec(0, sh("sleep 1000 & echo done; exit 3")...)
			if err != nil || r.ExitCode != 3 || string(r.Stdout) != "done\n" {
				t.Errorf("%q %d %v", r.Stdout, r.ExitCode, err)
			}
			eventually(t, "init and the daemon are left", func() bool {
				members, err := b.ctr.members()
				return err == nil && len(members) == 2
			})
		})
	}
}

func TestExecTimeoutKillsAll(t *testing.T) {
	for _, c := range []container{{handler: "crun"}, {handler: "runc"}, {handler: "crun", pid: "host"}} {
		t.Run(c.handler+"/"+c.pid, func(t *testing.T) {
			e := executor(t)
			b := create(t, e, c).start()
			// A child, one in its own session, and a daemon whose parent is gone; on
			// a busy machine it may take long until they are there.
			script := "sleep 1000 & setsid sleep 1001 & (setsid sleep 1002 &); echo begun; sleep 1003"
			for timeout := 500 * time.Millisecond; ; timeout *= 2 {
				r, err := b.exec(timeout, sh(script)...)
				if !errors.Is(err, ErrTimeout) {
					t.Fatalf("%q, %v; want ErrTimeout", r.Stdout, err)
				}
				if string(r.Stdout) == "begun\n" {
					break
				}
			}
			members, err := b.ctr.members()
			if err != nil || len(members) != 1 || members[0] != b.ctr.Init {
				t.Errorf("processes left: %v, %v; want only init", members, err)
			}
		})
	}
}

// What ExecSync returns at its timeout is not written to any more, although a
// writer that the kill did not find may go on. The race detector sees it.
func TestExecSyncOutputAtTimeout(t *testing.T) {
	done, cancel := context.WithCancel(context.Background())
	cancel()
	for range 100 {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		go func() { // until the reader is gone
			for page := make([]byte, 4096); err == nil; _, err = w.Write(page) {
			}
			w.Close()
		}()
		out := bounded{limit: maxOutput}
		o := copyOutput(r, &out)
		time.Sleep(time.Millisecond)
		o.finish(done, 0)
		got := out.take()
		if n := bytes.Count(got, []byte{0}); n != len(got) {
			t.Errorf("%d of %d bytes are what was written", n, len(got))
		}
		r.Close()
	}
}

// Several writers lose nothing of each other, and nothing is written once it was
// taken.
func TestBoundedKeepsAllUntilTaken(t *testing.T) {
	const writers, each = 8, 20_000
	out := bounded{limit: maxOutput}
	var all sync.WaitGroup
	for range writers {
		all.Go(func() {
			for range each {
				if n, err := out.Write([]byte{'x'}); n != 1 || err != nil {
					t.Errorf("write: %d, %v", n, err)
					return
				}
			}
		})
	}
	all.Wait()
	got := out.take()
	if n := bytes.Count(got, []byte{'x'}); n != writers*each || n != len(got) {
		t.Errorf("%d of %d bytes are what was written, want %d", n, len(got), writers*each)
	}
	if n, err := out.Write([]byte{'y'}); n != 0 || !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("write after take: %d, %v; want 0, io.ErrClosedPipe", n, err)
	}
	if bytes.IndexByte(got[:cap(got)], 'y') >= 0 {
		t.Error("what was taken was written to")
	}
}

// The end of a command's context does not cut off what it had written before.
func TestFinishDeliversWhatWasWritten(t *testing.T) {
	done, cancel := context.WithCancel(context.Background())
	cancel()
	for i := range 200 {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.WriteString("written"); err != nil {
			t.Fatal(err)
		}
		out := bounded{limit: maxOutput}
		o := copyOutput(r, &out)
		o.finish(done, 0)
		if got := out.take(); string(got) != "written" {
			t.Fatalf("round %d: %q was delivered", i, got)
		}
		r.Close()
		w.Close()
	}
}

func TestExecEndsWithContext(t *testing.T) { eachMonitor(t, testExecEndsWithContext) }

func testExecEndsWithContext(t *testing.T, e *Executor) {
	b := create(t, e, container{}).start()
	for _, tty := range []bool{false, true} {
		ctx, cancel := context.WithCancel(context.Background())
		time.AfterFunc(200*time.Millisecond, cancel)
		_, err := e.Exec(ctx, b.id, b.ctr, b.process("/bin/sleep", "100"), stdio.Streams{Stdout: io.Discard, TTY: tty})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("tty %v: %v", tty, err)
		}
		if members, err := b.ctr.members(); err != nil || len(members) != 1 {
			t.Errorf("tty %v: processes left: %v, %v", tty, members, err)
		}
	}
}

func TestExecStdin(t *testing.T) {
	eachHandler(t, func(t *testing.T, handler string) {
		e := executor(t)
		b := create(t, e, container{handler: handler}).start()
		in := strings.Repeat("0123456789\n", 100000)
		var out bytes.Buffer
		code, err := e.Exec(context.Background(), b.id, b.ctr, b.process("/bin/cat"), stdio.Streams{Stdin: strings.NewReader(in), Stdout: &out})
		if err != nil || code != 0 || out.String() != in {
			t.Errorf("code %d, %v, %d bytes of %d", code, err, out.Len(), len(in))
		}
		// A stdin that never ends does not keep a command that has ended.
		r, w := io.Pipe()
		defer w.Close()
		code, err = e.Exec(context.Background(), b.id, b.ctr, b.process(sh("exit 6")...), stdio.Streams{Stdin: r})
		if err != nil || code != 6 {
			t.Errorf("open stdin: code %d, %v", code, err)
		}
	})
}

func TestExecTerminal(t *testing.T) {
	eachHandler(t, func(t *testing.T, handler string) {
		e := executor(t)
		b := create(t, e, container{handler: handler}).start()
		stdin, type_ := io.Pipe()
		var out syncBuffer
		sizes := make(chan stdio.TerminalSize, 1)
		done := make(chan error, 1)
		var code int32
		go func() {
			var err error
			code, err = e.Exec(context.Background(), b.id, b.ctr, b.process(sh("test -t 0 && echo terminal; while read x; do stty size; test $x = end && exit 8; done")...),
				stdio.Streams{Stdin: stdin, Stdout: &out, TTY: true, Resize: sizes})
			done <- err
		}()
		eventually(t, "there is a terminal", func() bool { return strings.Contains(out.String(), "terminal\r\n") })
		sizes <- stdio.TerminalSize{Width: 132, Height: 43}
		eventually(t, "the new size is seen", func() bool {
			_, _ = io.WriteString(type_, "go\n")
			time.Sleep(20 * time.Millisecond)
			return strings.Contains(out.String(), "43 132\r\n")
		})
		_, _ = io.WriteString(type_, "end\n")
		if err := <-done; err != nil || code != 8 {
			t.Errorf("code %d, %v, output %q", code, err, out.String())
		}
		type_.Close()
		// Everything written is there, also by a command that ends at once.
		for range 10 {
			var out bytes.Buffer
			code, err := e.Exec(context.Background(), b.id, b.ctr, b.process(sh("echo 1; echo 2; exit 1")...), stdio.Streams{Stdout: &out, TTY: true})
			if err != nil || code != 1 || out.String() != "1\r\n2\r\n" {
				t.Errorf("code %d, %v, %q", code, err, out.String())
			}
		}
		if _, err := e.Exec(context.Background(), b.id, b.ctr, b.process("/no/such"), stdio.Streams{Stdout: io.Discard, TTY: true}); !errors.Is(err, ErrCommandNotFound) {
			t.Errorf("missing command: %v", err)
		}
	})
}

func TestParallelExecs(t *testing.T) { eachMonitor(t, testParallelExecs) }

func testParallelExecs(t *testing.T, e *Executor) {
	b := create(t, e, container{}).start()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if r, err := b.exec(0, sh("echo a; exit 1")...); err != nil || r.ExitCode != 1 || string(r.Stdout) != "a\n" {
				t.Errorf("%+v %v", r, err)
			}
		})
	}
	wg.Wait()
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// TestExecWhileItEnds executes a command while the container is killed, at any moment: it has
// run, was killed as well, or there was no container for it any more.
func TestExecWhileItEnds(t *testing.T) {
	eachHandlerOf(t, MonitorConmon, func(t *testing.T, handler string) {
		e := executor(t)
		for n := range 40 {
			b := create(t, e, container{handler: handler, args: sh("sleep 1000")}).start()
			time.AfterFunc(time.Duration(n)*300*time.Microsecond, func() { _ = b.ctr.Init.Signal(syscall.SIGKILL) })
			r, err := b.exec(0, "/bin/true")
			if !errors.Is(err, ErrNotRunning) && (err != nil || r.ExitCode != 0 && r.ExitCode != 128+int32(syscall.SIGKILL)) {
				t.Errorf("%d: %d, %v", n, r.ExitCode, err)
			}
		}
	})
}
