// Package keeper is the part of the container monitor that must never end: it is in the
// node's first process, which collects all orphans and so the init of each container. It
// records their exit statuses, keeps a copy of each descriptor that the monitor works
// with, and starts the monitor again when that has ended. The next monitor gets all of it.
//
// It does not look into what it keeps, and works on no container itself.
package keeper

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/monitor/wire"
	"github.com/subpod/subpod/pkg/proc"
)

// Options are where the monitor serves and how it is started.
type Options struct {
	// Socket is the path of the socket that the monitor gets as descriptor 3. Its directory
	// is the user's alone.
	Socket string
	// Program is the monitor's command line: looked at each time it is started.
	Program []string
	Env     []string
	Log     *slog.Logger
	// Restarted, unless it is nil, is called when a monitor that has failed is to be
	// started again.
	Restarted func()
}

const (
	// A monitor that fails is started again after a pause, which doubles until one has
	// lived for steadyAfter.
	minPause    = 20 * time.Millisecond
	maxPause    = time.Second
	steadyAfter = 10 * time.Second
	// maxHeld bounds what is kept: the monitor reads what containers write.
	maxHeld = 10_000
)

// Keeper keeps what the monitor must not lose. It costs a socket until the first client
// connects to that.
type Keeper struct {
	o        Options
	listener *os.File
	socket   int // the listener's descriptor

	mu    sync.Mutex
	held  map[string]*entry
	pids  map[int]*entry
	child int           // the monitor's PID, 0 when none runs
	ended chan bool     // whether the monitor has ended well
	wake  chan struct{} // an exit status is there to be sent
}

type entry struct {
	id    string
	init  proc.ID
	state json.RawMessage
	fds   []int
	exit  *wire.Exit
	sent  bool
}

// New listens at the socket. Run serves.
func New(o Options) (*Keeper, error) {
	dir, err := unix.Open(filepath.Dir(o.Socket), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: filepath.Dir(o.Socket), Err: err}
	}
	defer unix.Close(dir)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("make the monitor's socket: %w", err)
	}
	_ = os.Remove(o.Socket)
	// Through a descriptor: sun_path holds 108 bytes only.
	name := fmt.Sprintf("/proc/self/fd/%d/%s", dir, filepath.Base(o.Socket))
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: name}), unix.Listen(fd, 1024)); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("listen at %s: %w", o.Socket, err)
	}
	return &Keeper{o: o, listener: os.NewFile(uintptr(fd), o.Socket), socket: fd, held: map[string]*entry{}, pids: map[int]*entry{},
		ended: make(chan bool, 1), wake: make(chan struct{}, 1)}, nil
}

// Reaped records the end of a child of this process. Whoever collects children calls it
// for each.
func (k *Keeper) Reaped(pid int, status unix.WaitStatus) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if pid == k.child {
		k.child = 0
		k.ended <- status.Exited() && status.ExitStatus() == 0
		return
	}
	e := k.pids[pid]
	if e == nil {
		return
	}
	delete(k.pids, pid)
	e.exit = &wire.Exit{Status: uint32(status), At: time.Now()}
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// Run keeps a monitor running, for ever: from the first client on, and again when there is
// one or something is kept.
func (k *Keeper) Run() {
	pause := minPause
	for {
		k.awaitWork()
		started := time.Now()
		ok, err := k.serveOne()
		if time.Since(started) > steadyAfter {
			pause = minPause
		}
		if ok {
			continue
		}
		k.o.Log.Error("the container monitor has ended; containers keep running, their output waits", "error", err, "restart_in", pause)
		if err != nil {
			k.refuse()
		}
		time.Sleep(pause)
		if k.o.Restarted != nil {
			k.o.Restarted()
		}
		pause = min(2*pause, maxPause)
	}
}

// awaitWork returns when something is kept or a client waits.
func (k *Keeper) awaitWork() {
	k.mu.Lock()
	busy := len(k.held) > 0
	k.mu.Unlock()
	conn, err := k.listener.SyscallConn()
	if busy || err != nil {
		return
	}
	_ = conn.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return n > 0 || err != nil && err != unix.EINTR
	})
}

// refuse lets clients know that nobody will answer.
func (k *Keeper) refuse() {
	for {
		fd, _, err := unix.Accept4(k.socket, unix.SOCK_CLOEXEC)
		if err != nil {
			return
		}
		unix.Close(fd)
	}
}

// serveOne runs one monitor to its end, and reports whether it ended as it should. An
// error says why none could be started.
func (k *Keeper) serveOne() (bool, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	conn, err := wire.Conn(pair[0])
	if err != nil {
		unix.Close(pair[1])
		return false, err
	}
	// A session of its own: who collects orphans knows them by that.
	attr := &syscall.ProcAttr{Env: k.o.Env, Files: []uintptr{0, 1, 2, uintptr(k.socket), uintptr(pair[1])}, Sys: &syscall.SysProcAttr{Setsid: true}}
	k.mu.Lock() // the child may end at once
	pid, err := syscall.ForkExec(k.o.Program[0], k.o.Program, attr)
	if err == nil {
		k.child = pid
	}
	k.mu.Unlock()
	unix.Close(pair[1])
	if err != nil {
		conn.Close()
		return false, fmt.Errorf("start %s: %w", k.o.Program[0], err)
	}
	if err := k.serve(conn); err != nil {
		k.o.Log.Error("the container monitor is not understood", "error", err)
		k.kill()
	}
	return <-k.ended, nil
}

// kill ends the monitor, which may have ended.
func (k *Keeper) kill() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.child != 0 {
		_ = unix.Kill(k.child, unix.SIGKILL)
	}
}

// serve hands what is kept to a monitor, then does what it says until it has ended. The
// connection is closed then: a monitor that still runs ends by that.
func (k *Keeper) serve(conn *net.UnixConn) error {
	var reports sync.WaitGroup
	defer reports.Wait() // what it would still take is the next monitor's
	defer conn.Close()
	if err := k.handOver(conn); err != nil {
		k.o.Log.Warn("the container monitor has not got all that is kept for it", "error", err)
		return nil
	}
	stop := make(chan struct{})
	defer close(stop)
	reports.Go(func() { k.report(conn, stop) })
	for {
		var m wire.Keep
		fds, err := wire.Receive(conn, &m)
		if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
			return nil
		}
		if err != nil {
			return err
		}
		answer, err := k.handle(m, fds)
		if err != nil {
			return err
		}
		if err := wire.Send(conn, wire.Keep{V: wire.Version, Op: answer, ID: m.ID}); err != nil {
			return nil
		}
	}
}

// handOver sends all that is kept. Nothing is changed meanwhile but exit statuses.
func (k *Keeper) handOver(conn *net.UnixConn) error {
	k.mu.Lock()
	entries := make([]*entry, 0, len(k.held))
	for _, e := range k.held {
		entries = append(entries, e)
	}
	k.mu.Unlock()
	for _, e := range entries {
		k.mu.Lock()
		m := wire.Keep{V: wire.Version, Op: wire.KeepHeld, ID: e.id, Init: e.init, State: e.state, Exit: e.exit}
		e.sent = e.exit != nil
		k.mu.Unlock()
		if err := wire.Send(conn, m, e.fds...); err != nil {
			return err
		}
	}
	return wire.Send(conn, wire.Keep{V: wire.Version, Op: wire.KeepReady})
}

// report sends exit statuses as they come.
func (k *Keeper) report(conn *net.UnixConn, stop <-chan struct{}) {
	for {
		var due []wire.Keep
		k.mu.Lock()
		for _, e := range k.held {
			if e.exit != nil && !e.sent {
				e.sent = true
				due = append(due, wire.Keep{V: wire.Version, Op: wire.KeepExit, ID: e.id, Init: e.init, Exit: e.exit})
			}
		}
		k.mu.Unlock()
		for _, m := range due {
			if wire.Send(conn, m) != nil {
				return // the next monitor gets it with the rest
			}
		}
		select {
		case <-stop:
			return
		case <-k.wake:
		}
	}
}

func (k *Keeper) handle(m wire.Keep, fds []int) (answer string, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	old := k.held[m.ID]
	switch {
	case m.Op == wire.KeepDrop:
		wire.CloseAll(fds)
		if old != nil {
			wire.CloseAll(old.fds)
			delete(k.held, m.ID)
			if k.pids[old.init.PID] == old { // else its number is another's, or nobody's
				delete(k.pids, old.init.PID)
			}
		}
		return wire.KeepOK, nil
	case m.Op != wire.KeepHold || m.ID == "" || len(m.ID) > 256 || strings.ContainsRune(m.ID, 0):
		wire.CloseAll(fds)
		return "", fmt.Errorf("message %q for %q", m.Op, m.ID)
	case old != nil:
		if old.init != m.Init {
			wire.CloseAll(fds)
			return "", fmt.Errorf("%q is kept for another process", m.ID)
		}
		wire.CloseAll(old.fds)
		old.state, old.fds = m.State, fds
		return wire.KeepOK, nil
	case len(k.held) >= maxHeld:
		wire.CloseAll(fds)
		return "", fmt.Errorf("more than %d containers", maxHeld)
	}
	e := &entry{id: m.ID, init: m.Init, state: m.State, fds: fds}
	if !e.init.IsZero() {
		if k.pids[e.init.PID] != nil || !isChild(e.init) {
			wire.CloseAll(fds)
			return wire.KeepGone, nil
		}
		k.pids[e.init.PID] = e
	}
	k.held[m.ID] = e
	return wire.KeepOK, nil
}

// isChild reports whether the end of a process will be collected here. Its number cannot
// become another's before.
func isChild(id proc.ID) bool {
	var info unix.Siginfo
	for {
		err := unix.Waitid(unix.P_PID, id.PID, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return false
		}
		st, err := proc.ReadStat(id.PID)
		return err == nil && st.StartTime == id.StartTime
	}
}
