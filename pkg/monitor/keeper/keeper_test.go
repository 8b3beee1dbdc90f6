package keeper

import (
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/monitor/wire"
	"github.com/subpod/subpod/pkg/proc"
)

func newKeeper(t *testing.T) *Keeper {
	t.Helper()
	k, err := New(Options{Socket: filepath.Join(t.TempDir(), "socket"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.listener.Close() })
	return k
}

// monitor is the other end of a keeper's connection.
type monitor struct {
	t    *testing.T
	conn *net.UnixConn
	done chan error // what serve has returned
}

func serve(t *testing.T, k *Keeper) *monitor {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, err := wire.Conn(pair[0])
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := wire.Conn(pair[1])
	if err != nil {
		t.Fatal(err)
	}
	m := &monitor{t, ours, make(chan error, 1)}
	_ = ours.SetDeadline(time.Now().Add(time.Minute))
	go func() { m.done <- k.serve(theirs) }()
	t.Cleanup(func() { ours.Close() })
	return m
}

// end returns once the keeper has seen the end of the monitor.
func (m *monitor) end() {
	m.t.Helper()
	m.conn.Close()
	if err := <-m.done; err != nil {
		m.t.Error(err)
	}
}

func (m *monitor) receive() (k wire.Keep, fds []int) {
	m.t.Helper()
	fds, err := wire.Receive(m.conn, &k)
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { wire.CloseAll(fds) })
	return k, fds
}

// expect receives a message of a kind.
func (m *monitor) expect(op, id string) (wire.Keep, []int) {
	m.t.Helper()
	k, fds := m.receive()
	if k.Op != op || k.ID != id {
		m.t.Fatalf("the keeper says %+v, want %s of %q", k, op, id)
	}
	return k, fds
}

func (m *monitor) send(k wire.Keep, fds ...int) {
	m.t.Helper()
	if err := wire.Send(m.conn, k, fds...); err != nil {
		m.t.Fatal(err)
	}
}

// child starts a process, which end ends and collects, as the node's first process does.
func child(t *testing.T, k *Keeper) (init proc.ID, end func()) {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid, ended := cmd.Process.Pid, false
	end = func() {
		t.Helper()
		if ended {
			return
		}
		ended = true
		var status unix.WaitStatus
		if err := unix.Kill(pid, unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Wait4(pid, &status, 0, nil); err != nil {
			t.Fatal(err)
		}
		k.Reaped(pid, status)
	}
	t.Cleanup(end)
	init, err := proc.Identify(pid)
	if err != nil {
		t.Fatal(err)
	}
	return init, end
}

// pipe returns a pipe whose read end the test gives away.
func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

const exitTerminated = uint32(unix.SIGTERM) // as wait(2) has it

// TestNextMonitor: what one monitor has kept, and how the process has ended meanwhile, is the
// next one's, until one of them drops it.
func TestNextMonitor(t *testing.T) {
	k := newKeeper(t)
	init, end := child(t, k)
	r, w := pipe(t)
	first := serve(t, k)
	first.expect(wire.KeepReady, "")
	first.send(wire.Keep{Op: wire.KeepHold, ID: "a", Init: init, State: json.RawMessage(`"one"`)}, int(r.Fd()), int(r.Fd()))
	first.expect(wire.KeepOK, "a")
	first.send(wire.Keep{Op: wire.KeepHold, ID: "a", Init: init, State: json.RawMessage(`"two"`)}, int(r.Fd()))
	first.expect(wire.KeepOK, "a")
	first.end()
	end()
	r.Close()

	second := serve(t, k)
	kept, fds := second.expect(wire.KeepHeld, "a")
	if string(kept.State) != `"two"` || kept.Init != init || len(fds) != 1 || kept.Exit == nil || kept.Exit.Status != exitTerminated {
		t.Errorf("%+v with %d descriptors", kept, len(fds))
	}
	second.expect(wire.KeepReady, "")
	wire.CloseAll(fds)
	if _, err := w.WriteString("x"); err != nil {
		t.Errorf("the keeper has no copy of the descriptor: %v", err)
	}
	for range 2 {
		second.send(wire.Keep{Op: wire.KeepDrop, ID: "a"})
		second.expect(wire.KeepOK, "a")
	}
	if _, err := w.WriteString("x"); !errors.Is(err, unix.EPIPE) {
		t.Errorf("the descriptor is still open: %v", err)
	}
	second.end()
	serve(t, k).expect(wire.KeepReady, "")
}

// TestExitIsReported to the monitor that runs, once, and to each after it.
func TestExitIsReported(t *testing.T) {
	k := newKeeper(t)
	init, end := child(t, k)
	m := serve(t, k)
	m.expect(wire.KeepReady, "")
	m.send(wire.Keep{Op: wire.KeepHold, ID: "a", Init: init})
	m.expect(wire.KeepOK, "a")
	end()
	if exit, _ := m.expect(wire.KeepExit, "a"); exit.Exit == nil || exit.Exit.Status != exitTerminated || exit.Exit.At.IsZero() {
		t.Errorf("%+v", exit)
	}
	m.end()
	for range 2 {
		m = serve(t, k)
		if kept, _ := m.expect(wire.KeepHeld, "a"); kept.Exit == nil || kept.Exit.Status != exitTerminated {
			t.Errorf("%+v", kept)
		}
		m.expect(wire.KeepReady, "")
		m.end()
	}
}

// TestGone: the end of a process that this one will not collect is never known.
func TestGone(t *testing.T) {
	k := newKeeper(t)
	ended, end := child(t, k)
	end()
	lives, _ := child(t, k)
	other := lives
	other.StartTime--
	self, err := proc.Identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	m := serve(t, k)
	m.expect(wire.KeepReady, "")
	for name, id := range map[string]proc.ID{"ended": ended, "another one of this number": other, "no child": self} {
		m.send(wire.Keep{Op: wire.KeepHold, ID: name, Init: id})
		m.expect(wire.KeepGone, name)
	}
	m.send(wire.Keep{Op: wire.KeepHold, ID: "a", Init: lives})
	m.expect(wire.KeepOK, "a")
	m.send(wire.Keep{Op: wire.KeepHold, ID: "a second one of the same", Init: lives})
	m.expect(wire.KeepGone, "a second one of the same")
}

// TestReusedNumber: a container that has ended and is dropped later does not take the exit
// status of one whose init has its number now.
func TestReusedNumber(t *testing.T) {
	k := newKeeper(t)
	old, endOld := child(t, k)
	next, endNext := child(t, k)
	m := serve(t, k)
	m.expect(wire.KeepReady, "")
	m.send(wire.Keep{Op: wire.KeepHold, ID: "old", Init: old})
	m.expect(wire.KeepOK, "old")
	endOld()
	m.expect(wire.KeepExit, "old")
	m.send(wire.Keep{Op: wire.KeepHold, ID: "next", Init: next})
	m.expect(wire.KeepOK, "next")
	k.mu.Lock()
	k.held["old"].init.PID = next.PID // as the kernel does, sooner or later
	k.mu.Unlock()
	m.send(wire.Keep{Op: wire.KeepDrop, ID: "old"})
	m.expect(wire.KeepOK, "old")
	endNext()
	m.expect(wire.KeepExit, "next")
}

// TestFailedHandOver: a monitor that cannot be given all does not wait for the rest.
func TestFailedHandOver(t *testing.T) {
	k := newKeeper(t)
	k.held["a"] = &entry{id: "a", fds: []int{-1}}
	m := serve(t, k)
	if fds, err := wire.Receive(m.conn, &wire.Keep{}); !errors.Is(err, io.EOF) {
		t.Errorf("%d descriptors, %v", len(fds), err)
	}
}

// TestNotUnderstood: the connection to a monitor that asks for what cannot be ends, and what
// is kept stays.
func TestNotUnderstood(t *testing.T) {
	k := newKeeper(t)
	init, _ := child(t, k)
	m := serve(t, k)
	m.expect(wire.KeepReady, "")
	m.send(wire.Keep{Op: wire.KeepHold, ID: "a", Init: init})
	m.expect(wire.KeepOK, "a")
	m.end()
	for name, message := range map[string]wire.Keep{
		"another operation": {Op: "what", ID: "a"},
		"no name":           {Op: wire.KeepHold},
		"a long name":       {Op: wire.KeepHold, ID: strings.Repeat("x", 257)},
		"another process":   {Op: wire.KeepHold, ID: "a"},
	} {
		r, w := pipe(t)
		m := serve(t, k)
		m.expect(wire.KeepHeld, "a")
		m.expect(wire.KeepReady, "")
		m.send(message, int(r.Fd()))
		if err := <-m.done; err == nil {
			t.Errorf("%s: no error", name)
		}
		r.Close()
		if _, err := w.WriteString("x"); !errors.Is(err, unix.EPIPE) {
			t.Errorf("%s: its descriptor stays open: %v", name, err)
		}
	}
}
