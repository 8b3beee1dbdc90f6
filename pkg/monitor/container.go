package monitor

import (
	"errors"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/monitor/wire"
	"github.com/subpod/subpod/pkg/proc"
)

// Short names for what a container has open.
const fileLog, fileEvents = wire.FileLog, wire.FileEvents

// container is one that the monitor watches.
type container struct {
	m         *Monitor
	id        string
	init      proc.ID
	index     int
	bundle    string
	stdinOnce bool

	// mu guards all below, and the log: both streams write to it. It is held while the log
	// is written, and while the keeper answers.
	mu    sync.Mutex
	state wire.Container
	fds   []int               // those of state.Files
	files map[string]*os.File // of them, those that can be waited for
	stdin *os.File
	turn  chan struct{} // taken by the client whose stdin is being written
	exit  *wire.Exit
	lost  int64 // bytes that could not be written
	// settled: nothing is written any more. dropped: the keeper has forgotten it.
	settled, dropped bool

	streams []*stream
	open    sync.WaitGroup
	ended   chan struct{} // closed when init has ended
	done    chan struct{} // closed when all it has written is in the log, too
	clients clients
	// abandoned: what the streams still hold is not read.
	abandoned atomic.Bool
}

// stream is one output of a container.
type stream struct {
	c      *container
	number int // in the journal
	file   *os.File
}

// newContainer takes over the descriptors. What an earlier monitor has left is resumed
// before start.
func newContainer(m *Monitor, state wire.Container, fds []int) *container {
	c := &container{m: m, id: state.ID, init: state.Init, index: state.Index, bundle: state.Bundle, stdinOnce: state.StdinOnce, state: state, fds: fds, files: map[string]*os.File{}, ended: make(chan struct{}), done: make(chan struct{}), turn: make(chan struct{}, 1)}
	c.clients.changed = sync.NewCond(&c.clients.mu)
	for i, name := range state.Files {
		if name != fileLog && name != fileEvents {
			_ = unix.SetNonblock(fds[i], true)
			c.files[name] = os.NewFile(uintptr(fds[i]), name)
		}
	}
	for number, names := range [streamsEach][]string{{wire.FileStdout, wire.FileTerminal}, {wire.FileStderr}} {
		for _, name := range names {
			if f := c.files[name]; f != nil {
				c.streams = append(c.streams, &stream{c: c, number: state.Index*streamsEach + number, file: f})
			}
		}
	}
	if c.stdin = c.files[wire.FileStdin]; c.stdin == nil {
		c.stdin = c.files[wire.FileTerminal]
	}
	return c
}

// start begins to read the streams.
func (c *container) start() {
	for _, s := range c.streams {
		c.open.Go(s.run)
	}
	go c.settle()
}

// file returns a descriptor, -1 for none.
func (c *container) file(name string) int {
	if i := slices.Index(c.state.Files, name); i >= 0 {
		return c.fds[i]
	}
	return -1
}

// change has the keeper keep another set of files, then closes those that are not in it.
// The container is locked.
func (c *container) change(files []string, fds []int) error {
	next := c.state
	next.Files = files
	if err := c.m.keep(next, fds); err != nil {
		return err
	}
	for i, fd := range c.fds {
		if slices.Contains(fds, fd) {
			continue
		}
		if f := c.files[c.state.Files[i]]; f != nil {
			f.Close()
		} else {
			unix.Close(fd)
		}
	}
	c.state, c.fds = next, fds
	return nil
}

// without returns the files but some.
func (c *container) without(names ...string) (files []string, fds []int) {
	for i, name := range c.state.Files {
		if !slices.Contains(names, name) {
			files, fds = append(files, name), append(fds, c.fds[i])
		}
	}
	return files, fds
}

var errEnded = errors.New("the container has ended")

// reopen goes on in another log.
func (c *container) reopen(log int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.settled {
		unix.Close(log)
		return errEnded
	}
	files, fds := c.without(fileLog)
	err := c.change(append(files, fileLog), append(fds, log))
	if err != nil {
		unix.Close(log)
	}
	return err
}

// endStdin closes the container's stdin.
func (c *container) endStdin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.file(wire.FileStdin) < 0 {
		return
	}
	files, fds := c.without(wire.FileStdin)
	if err := c.change(files, fds); err != nil {
		c.m.log.Warn("cannot close a container's stdin", "container", c.id, "error", err)
	}
}

// setExit records how init has ended.
func (c *container) setExit(x wire.Exit) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.exit != nil {
		return
	}
	if c.file(fileEvents) >= 0 && oomKilled(c.file(fileEvents)) {
		c.state.OOM = true
	}
	x.OOM = c.state.OOM
	c.exit = &x
	close(c.ended)
	c.interrupt()
}

// settle waits for the end of init and of what it has written, and lets go of all files.
func (c *container) settle() {
	<-c.ended
	c.open.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.settled = true
	if !c.dropped {
		if err := c.change(nil, nil); err != nil {
			c.m.log.Warn("cannot let go of a container's files", "container", c.id, "error", err)
		}
	}
	c.clients.end()
	close(c.done)
}

// abandon ends the reading of the streams, whatever they still hold.
func (c *container) abandon() {
	c.abandoned.Store(true)
	c.interrupt()
}

// interrupt ends the waiting for output: see drain.
func (c *container) interrupt() {
	for _, s := range c.streams {
		_ = s.file.SetReadDeadline(time.Unix(1, 0))
	}
	c.clients.release()
}

// terminalPause is how long a terminal that nobody has open is left alone.
const terminalPause = 100 * time.Millisecond

// run reads a stream to its end, or until init has ended and the stream is empty: what
// outlives init may hold it open for ever.
func (s *stream) run() {
	conn, err := s.file.SyscallConn()
	if err == nil && s.copy(conn.Read, false) {
		s.copy(func(f func(fd uintptr) bool) error { return conn.Control(func(fd uintptr) { f(fd) }) }, true)
	}
	sl := <-s.c.m.journal.idle
	sl.begin(s.number, true)
	sl.setState(stateReading)
	s.c.record(sl)
}

// copy takes batches until there are no more. It reports whether the wait for one was
// interrupted.
func (s *stream) copy(read func(func(fd uintptr) bool) error, drain bool) (interrupted bool) {
	for !drain || !s.c.abandoned.Load() {
		s.c.clients.pace()
		more, err := s.next(read)
		if err != nil || !more {
			return err != nil
		}
		runtime.Gosched() // the others' turn: a writer without end gets one batch a round
	}
	return false
}

// next takes one batch. It holds a slot only once there is something to read.
func (s *stream) next(read func(func(fd uintptr) bool) error) (more bool, err error) {
	var n int
	var failed error
	var sl *slot
	err = read(func(fd uintptr) bool {
		sl = <-s.c.m.journal.idle
		sl.begin(s.number, false)
		if n, failed = sl.stage(int(fd)); n > 0 {
			return true
		}
		sl.release()
		return failed != unix.EAGAIN
	})
	if err != nil {
		return false, err
	}
	if n > 0 {
		sl.setCount(n)
		sl.setState(stateReading)
		s.c.record(sl)
		return true, nil
	}
	if failed == unix.EIO { // a terminal that nobody has open; somebody may open it again
		select {
		case <-s.c.ended:
			return false, nil
		case <-time.After(terminalPause):
			return true, nil
		}
	}
	if failed != nil && failed != unix.EAGAIN {
		s.c.m.log.Warn("a container's output cannot be read", "container", s.c.id, "error", failed)
	}
	return false, nil
}
