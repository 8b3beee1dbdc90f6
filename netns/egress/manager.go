package egress

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/pkg/errclass"
	"github.com/subpod/subpod/pkg/seccompnotify"
)

// ErrUnavailable says that sockets cannot be switched here. The error that wraps it says why.
var ErrUnavailable = errclass.New(errdefs.ErrFailedPrecondition, "sockets of pods cannot be switched to the host's network")

// Options of a Manager.
type Options struct {
	// NetNS returns the path of a pod's network namespace.
	NetNS func(pod string) string
	// Thread is in the node's network namespace: what that has routes to, except by its default
	// route, stays in the pod's network.
	Thread *netns.Thread
	// Local are further addresses that stay there.
	Local []netip.Prefix
	// Holder keeps listeners when the server ends.
	Holder Holder
	Log    *slog.Logger
}

// Holder is *rootless.Holder. What it holds under a name that begins with seccompnotify.HeldListener is a
// listener, whose calls it continues while there is no server; seccompnotify.HeldLedger is the ledger of those.
type Holder interface {
	Answers() bool
	Names(prefix string) []string
	Take(name string) *os.File
	Keep(name string, fd int) error
	Drop(name string) error
}

const (
	// maxCalls bounds the calls of one listener that are worked on at a time, maxAll those of all
	// together. Others are continued: they take the uplink.
	maxCalls, maxAll = 128, 1024
)

// Manager switches sockets of pods. Its methods may be called at the same time.
type Manager struct {
	Options
	ledger *seccompnotify.Ledger
	host   uint64 // identifies the host's network namespace
	places places
	ways   ways
	slots  chan struct{}
	full   atomic.Bool // the ledger, see Install

	mu      sync.Mutex
	next    int
	guards  map[*guard]bool
	results map[outcome]uint64
}

// outcome is what has become of a call.
type outcome string

// The outcomes. All but the first two were left to the kernel.
const (
	switched    outcome = "switched"
	failed      outcome = "failed" // the server could not connect either
	local       outcome = "local"
	hosts       outcome = "host"        // an address of the host's loopback interface
	bound       outcome = "bound"       // to an address or a device
	busy        outcome = "connected"   // or listening, or on the way
	ports       outcome = "ports"       // the host has none left
	overloaded  outcome = "overloaded"  // maxCalls, maxAll
	interrupted outcome = "interrupted" // by a signal
	other       outcome = "other"       // another protocol or family
)

// New returns a Manager that goes on with the listeners that an earlier server has left.
// ErrUnavailable.
func New(o Options) (*Manager, error) {
	if auditArch == 0 {
		return nil, fmt.Errorf("%w: not on this machine's architecture", ErrUnavailable)
	}
	if !o.Holder.Answers() {
		return nil, fmt.Errorf("%w: the supervisor is of an earlier version; end the daemon and start it", ErrUnavailable)
	}
	if err := canWeld(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	m := &Manager{Options: o, guards: map[*guard]bool{}, results: map[outcome]uint64{}, slots: make(chan struct{}, maxAll)}
	m.places = places{thread: o.Thread, more: o.Local}
	var err error
	if m.host, err = namespaceOf(unix.AF_INET); err != nil {
		return nil, fmt.Errorf("%w: the kernel does not identify network namespaces (Linux 5.14): %w", ErrUnavailable, err)
	}
	if f := o.Holder.Take(seccompnotify.HeldLedger); f != nil {
		m.ledger, err = seccompnotify.OpenLedger(f)
	} else if m.ledger, err = seccompnotify.NewLedger(); err == nil {
		err = o.Holder.Keep(seccompnotify.HeldLedger, m.ledger.FD())
	}
	if err != nil {
		return nil, err
	}
	m.resume()
	return m, nil
}

// resume takes the listeners of the earlier server.
func (m *Manager) resume() {
	for _, name := range m.Holder.Names(seccompnotify.HeldListener) {
		f := m.Holder.Take(name)
		if f == nil {
			continue
		}
		fields := strings.Split(strings.TrimPrefix(name, seccompnotify.HeldListener), ":")
		number, err := strconv.Atoi(fields[0])
		var entry *seccompnotify.Entry
		if err == nil && len(fields) == 3 {
			entry = m.ledger.Again(number)
		}
		if entry == nil {
			m.Log.Error("what the supervisor holds is no listener of a pod", "name", name)
			f.Close()
			continue
		}
		if seq, err := strconv.Atoi(fields[2]); err == nil {
			m.next = max(m.next, seq+1)
		}
		if err := m.start(name, fields[1], f, entry, true); err != nil {
			m.Log.Error("connections of a pod stay on the uplink: its listener cannot be served", "pod", fields[1], "error", err)
		}
	}
}

// Install has the connections of what the calling thread starts from now on, and of the
// thread itself, switched, if they are made in the pod's network namespace. It cannot be undone: the thread
// has to end. When as many listeners are in use as there may be, connections stay as they are.
// ErrUnavailable where a filter with a listener is there already.
func (m *Manager) Install(pod string) error {
	entry, err := m.ledger.Take()
	if errors.Is(err, seccompnotify.ErrLedgerFull) { // a process has to run, fast or not
		if m.full.CompareAndSwap(false, true) {
			m.Log.Warn("connections of further containers and commands stay on the uplink", "pod", pod, "error", err)
		}
		return nil
	}
	if err != nil {
		return err
	}
	m.full.Store(false)
	f, err := seccompnotify.Install(filter())
	if err != nil {
		m.ledger.Free(entry)
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	m.mu.Lock()
	name := fmt.Sprintf("%s%d:%s:%d", seccompnotify.HeldListener, entry.Number, pod, m.next)
	m.next++
	m.mu.Unlock()
	if err = m.Holder.Keep(name, int(f.Fd())); err == nil {
		if err = m.start(name, pod, f, entry, false); err != nil {
			err = errors.Join(err, m.Holder.Drop(name))
		}
	} else {
		f.Close()
	}
	if err != nil {
		m.ledger.Free(entry)
	}
	return err
}

// start answers what comes from a listener until no process has its filter.
func (m *Manager) start(name, pod string, f *os.File, entry *seccompnotify.Entry, left bool) error {
	defer f.Close()
	g := &guard{m: m, name: name, pod: pod, entry: entry, left: left, slots: make(chan struct{}, maxCalls), done: make(chan struct{})}
	var err error
	if g.listener, err = seccompnotify.NewListener(int(f.Fd())); err != nil {
		return err
	}
	m.mu.Lock()
	m.guards[g] = true
	m.mu.Unlock()
	go g.run()
	return nil
}

// socketIn makes a socket in the pod's network namespace.
func (m *Manager) socketIn(pod string, domain int) (fd int, err error) {
	err = netns.In(m.NetNS(pod), func() (err error) {
		fd, err = unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
		return err
	})
	return fd, err
}

// count keeps the sum of each outcome.
func (m *Manager) count(o outcome) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.results[o]++
}

// Counts returns how many calls of connect(2) have ended how, since the server was started.
func (m *Manager) Counts() map[string]uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[string]uint64{}
	for o, n := range m.results {
		out[string(o)] = n
	}
	return out
}

// closeTimeout bounds how long Close waits for calls that are worked on.
const closeTimeout = 500 * time.Millisecond

// Close stops answering. Calls that wait then are the supervisor's, which continues them.
// Idempotent.
func (m *Manager) Close() {
	m.mu.Lock()
	all := slices.Collect(maps.Keys(m.guards))
	m.mu.Unlock()
	for _, g := range all {
		g.listener.Stop()
		<-g.done
	}
	for end := time.Now().Add(closeTimeout); len(m.slots) > 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	for _, g := range all {
		g.closed.Store(true)
		_ = g.listener.Close()
	}
}

// guard answers the calls of one listener.
type guard struct {
	m        *Manager
	name     string // that it is held under
	pod      string
	listener *seccompnotify.Listener
	entry    *seccompnotify.Entry
	left     bool // an earlier server has left it
	slots    chan struct{}
	done     chan struct{}
	closed   atomic.Bool

	deliveries deliveries

	mu     sync.Mutex
	cookie uint64 // identifies the pod's network namespace; 0 while that is not known
}

func (g *guard) run() {
	defer close(g.done)
	if g.left {
		g.entry.Release(g.listener, 0)
	}
	for first := g.left; ; first = false {
		n, err := g.listener.Recv()
		if err != nil {
			g.end(err)
			return
		}
		if first {
			g.entry.Release(g.listener, n.ID)
		}
		g.entry.Received(n.ID)
		if !g.enter() {
			g.m.count(overloaded)
			_ = g.listener.Continue(n.ID)
			g.entry.Answered(n.ID)
			continue
		}
		go func() {
			defer g.leave()
			g.answer(n)
			if !g.closed.Load() { // else it may have had no answer
				g.entry.Answered(n.ID)
			}
		}()
	}
}

// enter takes a place among those that are worked on.
func (g *guard) enter() bool {
	select {
	case g.slots <- struct{}{}:
	default:
		return false
	}
	select {
	case g.m.slots <- struct{}{}:
		return true
	default:
		<-g.slots
		return false
	}
}

func (g *guard) leave() {
	<-g.m.slots
	<-g.slots
}

// end forgets a listener without processes. One that was closed is the next server's.
func (g *guard) end(err error) {
	if errors.Is(err, os.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
		return
	}
	m := g.m
	m.mu.Lock()
	delete(m.guards, g)
	m.mu.Unlock()
	if !errors.Is(err, io.EOF) {
		m.Log.Error("connections of a pod can no longer be switched", "pod", g.pod, "error", err)
	}
	_ = g.listener.Close()
	m.ledger.Free(g.entry)
	if err := m.Holder.Drop(g.name); err != nil {
		m.Log.Warn("the listener of a container that has ended is still held", "pod", g.pod, "error", err)
	}
}

// isPods reports whether a cookie is that of the pod's network namespace, which may be made
// after the first process of the pod.
func (g *guard) isPods(cookie uint64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.cookie == 0 {
		err := netns.In(g.m.NetNS(g.pod), func() (err error) {
			g.cookie, err = namespaceOf(unix.AF_INET)
			return err
		})
		if err != nil {
			g.m.Log.Debug("a connection stays on the uplink: the pod's network namespace cannot be entered", "pod", g.pod, "error", err)
			return false
		}
	}
	return g.cookie == cookie
}

// namespaceOf identifies the network namespace of the calling thread (Linux 5.14).
func namespaceOf(domain int) (uint64, error) {
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	return unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
}
