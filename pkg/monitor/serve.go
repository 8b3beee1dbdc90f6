package monitor

import (
	"errors"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/monitor/wire"
)

// maxRequests bounds how many clients are served at a time.
const maxRequests = 16_384

// requestTimeout bounds how long a client may take to say what it wants.
const requestTimeout = 10 * time.Second

// accept serves clients, each in a goroutine.
func (m *Monitor) accept() {
	for {
		conn, err := m.listener.Accept()
		if err != nil {
			m.log.Warn("cannot accept a client", "error", err)
			time.Sleep(10 * time.Millisecond) // no descriptors: some will be free
			continue
		}
		select {
		case m.used <- struct{}{}:
		default:
		}
		m.mu.Lock()
		m.busy++
		full := m.busy > maxRequests
		m.mu.Unlock()
		go func() {
			if client, ok := conn.(*net.UnixConn); ok && !full {
				m.serve(client)
			}
			conn.Close()
			m.mu.Lock()
			m.busy--
			m.mu.Unlock()
		}()
	}
}

func (m *Monitor) serve(conn *net.UnixConn) {
	var req wire.Request
	_ = conn.SetReadDeadline(time.Now().Add(requestTimeout))
	fds, err := wire.Receive(conn, &req)
	if err != nil {
		return
	}
	_ = conn.SetReadDeadline(time.Time{})
	if req.Op != wire.OpRegister && req.Op != wire.OpReopen {
		wire.CloseAll(fds)
		fds = nil
	}
	if req.Op == wire.OpAttach {
		if c := m.find(req.ID); c != nil {
			c.attach(conn, req)
			return
		}
	}
	reply := m.answer(conn, req, fds)
	reply.V = wire.Version
	_ = wire.Send(conn, reply)
	if req.Op == wire.OpUpgrade {
		m.leave()
		os.Exit(0)
	}
}

func (m *Monitor) answer(conn *net.UnixConn, req wire.Request, fds []int) wire.Reply {
	switch req.Op {
	case wire.OpHello, wire.OpUpgrade:
		return wire.Reply{Build: m.build, PID: os.Getpid()}
	case wire.OpList:
		return wire.Reply{Watched: m.watched(req.ID)}
	case wire.OpDrop:
		return failure(m.drop(req.ID))
	case wire.OpRegister:
		if req.Container == nil {
			wire.CloseAll(fds)
			return failure(errors.New("no container"))
		}
		return failure(m.register(*req.Container, fds))
	}
	c := m.find(req.ID)
	if c == nil {
		wire.CloseAll(fds)
		return wire.Reply{Unknown: true, Error: "the monitor does not know the container"}
	}
	switch req.Op {
	case wire.OpStatus:
		return c.status()
	case wire.OpWait:
		return c.await(conn)
	case wire.OpFinish:
		select {
		case <-c.ended:
			c.abandon()
			<-c.done
			return c.status()
		default:
			return failure(errors.New("the container has not ended"))
		}
	case wire.OpReopen:
		if len(fds) != 1 {
			wire.CloseAll(fds)
			return failure(errors.New("no log"))
		}
		err := c.reopen(fds[0])
		r := failure(err)
		r.Ended = err == errEnded
		return r
	case wire.OpResize:
		return failure(c.resize(req.Rows, req.Cols))
	}
	return failure(errors.New("unknown request " + req.Op))
}

func failure(err error) wire.Reply {
	if err == nil {
		return wire.Reply{}
	}
	return wire.Reply{Error: err.Error()}
}

// watched returns the containers that follow one in the order of their IDs.
func (m *Monitor) watched(after string) []wire.Watched {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []wire.Watched
	for id, c := range m.containers {
		if id > after {
			all = append(all, wire.Watched{ID: id, Bundle: c.bundle})
		}
	}
	slices.SortFunc(all, func(a, b wire.Watched) int { return strings.Compare(a.ID, b.ID) })
	return all[:min(len(all), wire.MaxWatched)]
}

// status has the exit status once all output is in the log.
func (c *container) status() wire.Reply {
	c.mu.Lock()
	defer c.mu.Unlock()
	var r wire.Reply
	var st unix.Stat_t
	if log := c.file(fileLog); log >= 0 && unix.Fstat(log, &st) == nil {
		r.Log = &wire.Log{Dev: uint64(st.Dev), Ino: st.Ino}
	}
	select {
	case <-c.done:
		r.Exit = c.exit
	default:
	}
	return r
}

// await waits for the end of a container and its output, or of the client.
func (c *container) await(conn *net.UnixConn) wire.Reply {
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		awaitHangup(conn)
	}()
	select {
	case <-c.done:
	case <-gone:
	}
	return c.status()
}

func (c *container) resize(rows, cols uint16) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	master := c.file(wire.FileTerminal)
	if master < 0 {
		return errors.New("the container has no terminal")
	}
	return unix.IoctlSetWinsize(master, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
}

// closeFiles closes all that is open of a container.
func (c *container) closeFiles() {
	for i, fd := range c.fds {
		if f := c.files[c.state.Files[i]]; f != nil {
			f.Close()
		} else {
			unix.Close(fd)
		}
	}
	c.state.Files, c.fds = nil, nil
}
