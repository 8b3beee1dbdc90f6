package monitor

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/monitor/wire"
	"github.com/subpod/subpod/pkg/proc"
)

// The descriptors that the keeper starts the monitor with.
const (
	listenerFD = 3
	keeperFD   = 4
)

// idleAfter is how long a monitor without containers and clients stays.
const idleAfter = 30 * time.Second

// journalName is what the keeper calls the journal: no container's ID.
const journalName = "/journal"

// Monitor is the process that watches all containers.
type Monitor struct {
	build    string
	log      *slog.Logger
	keeper   *keeperConn
	journal  *journal
	listener net.Listener
	used     chan struct{} // a client is there

	mu         sync.Mutex
	containers map[string]*container
	indices    map[int]bool
	busy       int // clients
}

// Run serves until it is no longer needed, and returns the exit code. Build names the
// program. The keeper starts it.
func Run(build string, log *slog.Logger) int {
	m := &Monitor{build: build, log: log, containers: map[string]*container{}, indices: map[int]bool{}, used: make(chan struct{}, 1)}
	if err := m.run(); err != nil {
		log.Error("the container monitor ends", "error", err)
		return 1
	}
	return 0
}

func (m *Monitor) run() error {
	// The other half is for those who write. With an idle processor at hand the scheduler
	// wakes one up for each batch, which takes longer than the batch.
	runtime.GOMAXPROCS(max(1, runtime.GOMAXPROCS(0)/2))
	unix.CloseOnExec(listenerFD)
	unix.CloseOnExec(keeperFD)
	if err := confine(); err != nil {
		return fmt.Errorf("give up what the monitor does not need: %w", err)
	}
	f := os.NewFile(listenerFD, "listener")
	listener, err := net.FileListener(f)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	f.Close()
	m.listener = listener
	conn, err := wire.Conn(keeperFD)
	if err != nil {
		return fmt.Errorf("reach the node's first process: %w", err)
	}
	m.keeper = newKeeperConn(conn)
	if err := m.takeOver(); err != nil {
		return err
	}
	go func() { m.fail(m.keeper.serve(m.exited)) }()
	if m.journal == nil {
		if err := m.makeJournal(); err != nil {
			return err
		}
	}
	m.resume()
	go m.accept()
	m.awaitIdle()
	m.leave()
	return nil
}

// fail ends the monitor at once: the next one goes on.
func (m *Monitor) fail(err error) {
	m.log.Error("the container monitor ends", "error", err)
	os.Exit(1)
}

// takeOver receives what earlier monitors have left.
func (m *Monitor) takeOver() error {
	return m.keeper.takeOver(func(k wire.Keep, fds []int) error {
		if k.ID == journalName {
			var err error
			m.journal, err = openJournal(fds)
			return err
		}
		var state wire.Container
		if err := json.Unmarshal(k.State, &state); err != nil || len(state.Files) != len(fds) || state.Index < 0 || state.Index >= maxContainers {
			return fmt.Errorf("what is kept of container %s is not understood: %.200q, %d files: %w", k.ID, k.State, len(fds), err)
		}
		c := newContainer(m, state, fds)
		m.containers[k.ID], m.indices[state.Index] = c, true
		if k.Exit != nil {
			c.setExit(*k.Exit)
		}
		return nil
	})
}

func (m *Monitor) makeJournal() error {
	j, fds, err := newJournal()
	if err != nil {
		return err
	}
	m.journal = j
	if err := m.keeper.hold(wire.Keep{ID: journalName}, fds); err != nil {
		return fmt.Errorf("have the journal kept: %w", err)
	}
	return nil
}

// keepJournal has the keeper keep the journal's descriptors as they are now.
func (m *Monitor) keepJournal() error {
	m.mu.Lock() // one at a time
	defer m.mu.Unlock()
	return m.keeper.hold(wire.Keep{ID: journalName}, m.journal.files())
}

// resume ends what an earlier monitor was at, then lets all containers go on.
func (m *Monitor) resume() {
	byIndex := map[int]*container{}
	for _, c := range m.containers {
		byIndex[c.index] = c
	}
	for _, s := range m.journal.slots {
		if s.state() == stateFree {
			m.journal.idle <- s
			continue
		}
		c := byIndex[s.stream()/streamsEach]
		if c == nil { // dropped meanwhile
			if err := s.replacePipe(); err != nil {
				m.fail(err)
			}
			if err := m.keepJournal(); err != nil {
				m.fail(err)
			}
			s.release()
			continue
		}
		c.mu.Lock()
		c.resume(s)
		c.mu.Unlock()
	}
	for _, c := range m.containers {
		c.start()
	}
}

// keep has the keeper keep a container.
func (m *Monitor) keep(state wire.Container, fds []int) error {
	b, err := json.Marshal(state)
	if err != nil {
		return err
	}
	return m.keeper.hold(wire.Keep{ID: state.ID, Init: state.Init, State: b}, fds)
}

// exited is told of the end of a container's init. The container may have been dropped and
// made again meanwhile.
func (m *Monitor) exited(id string, init proc.ID, x wire.Exit) {
	go func() { // the keeper's answers must go on: others wait for them with locks held
		if c := m.find(id); c != nil && c.init == init {
			c.setExit(x)
		}
	}()
}

func (m *Monitor) find(id string) *container {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.containers[id]
}

// errGone is returned for a container whose init has ended before it was registered.
var errGone = errors.New("the container's init has ended")

// register begins to watch a container. A repeated request changes nothing.
func (m *Monitor) register(state wire.Container, fds []int) error {
	if state.ID == "" || state.Init.IsZero() || len(state.Files) != len(fds) {
		wire.CloseAll(fds)
		return fmt.Errorf("%d files for %d names", len(fds), len(state.Files))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if c := m.containers[state.ID]; c != nil {
		wire.CloseAll(fds)
		if c.init != state.Init {
			return errors.New("a container of this name is watched already")
		}
		return nil
	}
	state.Index = 0
	for m.indices[state.Index] {
		state.Index++
	}
	if state.Index >= maxContainers {
		wire.CloseAll(fds)
		return fmt.Errorf("%d containers are watched already", maxContainers)
	}
	// What a monitor that was killed had no time to forget is of another container.
	for number := range streamsEach {
		m.journal.forget(state.Index*streamsEach + number)
	}
	// Found under its name before its end can be reported.
	c := newContainer(m, state, fds)
	m.containers[state.ID], m.indices[state.Index] = c, true
	if err := m.keep(state, fds); err != nil {
		delete(m.containers, state.ID)
		delete(m.indices, state.Index)
		c.closeFiles()
		return err
	}
	c.start()
	return nil
}

// drop forgets a container. What it still writes is lost.
func (m *Monitor) drop(id string) error {
	c := m.find(id)
	if c == nil {
		return nil
	}
	c.abandon()
	c.open.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dropped { // by another one meanwhile
		return nil
	}
	if err := m.keeper.drop(id); err != nil {
		return err
	}
	c.closeFiles()
	c.clients.end()
	if c.dropped = true; c.exit == nil {
		c.exit = &wire.Exit{At: time.Now()}
		close(c.ended)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.containers, id)
	delete(m.indices, c.index)
	for number := range streamsEach {
		m.journal.forget(c.index*streamsEach + number)
	}
	return nil
}

// awaitIdle returns when nobody has needed the monitor for a while.
func (m *Monitor) awaitIdle() {
	for {
		select {
		case <-m.used:
		case <-time.After(idleAfter):
			m.mu.Lock()
			idle := m.busy == 0 && len(m.containers) == 0
			m.mu.Unlock()
			if idle {
				return
			}
		}
	}
}

// leave waits until no batch is under way, and allows no other.
func (m *Monitor) leave() {
	for range slots {
		<-m.journal.idle
	}
}
