package oci

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/monitor/wire"
)

// The kinds of monitors, as Options.Monitor and a container's record have them.
const (
	MonitorConmon = "conmon"
	MonitorNode   = "subpod"
)

// nodeMonitor is the one process for all containers of the node: package monitor.
type nodeMonitor struct{ e *Executor }

// errNoMonitor is returned where the node has no socket of a monitor.
var errNoMonitor = errors.New("the node has no container monitor: it was made by an earlier version")

// errUnwatched is returned for a container that the monitor does not know.
var errUnwatched = errors.New("the monitor does not know the container")

// monitorTimeout bounds how long the monitor may take to answer, also while it is started
// again; monitorPause is the longest pause between two tries.
const (
	monitorTimeout = 10 * time.Second
	monitorPause   = 250 * time.Millisecond
)

// ask sends a request and returns the answer. When the monitor ends meanwhile the next one is
// asked again.
func (m nodeMonitor) ask(ctx context.Context, req wire.Request, files ...int) (wire.Reply, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, monitorTimeout, errors.New("the container monitor does not answer"))
	defer cancel()
	return m.insist(ctx, req, files...)
}

// insist is ask without a bound of its own.
func (m nodeMonitor) insist(ctx context.Context, req wire.Request, files ...int) (wire.Reply, error) {
	for pause := time.Millisecond; ; pause = min(2*pause, monitorPause) {
		reply, err := m.try(ctx, req, files)
		switch {
		case err == nil && reply.Unknown:
			return reply, errUnwatched
		case err == nil && reply.Error != "":
			return reply, fmt.Errorf("the container monitor: %s", reply.Error)
		case err == nil || errors.Is(err, errNoMonitor):
			return reply, err
		}
		select {
		case <-ctx.Done():
			return reply, fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-time.After(pause):
		}
	}
}

func (m nodeMonitor) try(ctx context.Context, req wire.Request, files []int) (reply wire.Reply, err error) {
	conn, err := m.dial()
	if err != nil {
		return reply, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	return m.exchange(conn, req, files)
}

func (m nodeMonitor) exchange(conn *net.UnixConn, req wire.Request, files []int) (reply wire.Reply, err error) {
	req.V = wire.Version
	if err := wire.Send(conn, req, files...); err != nil {
		return reply, err
	}
	fds, err := wire.Receive(conn, &reply)
	wire.CloseAll(fds)
	return reply, err
}

func (m nodeMonitor) dial() (*net.UnixConn, error) {
	if m.e.monitorSocket == "" {
		return nil, errNoMonitor
	}
	conn, err := dialPacket(filepath.Dir(m.e.monitorSocket), filepath.Base(m.e.monitorSocket))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
		return nil, errNoMonitor
	}
	return conn, err
}

// choose decides whether containers that are created from now on get the node's monitor, and
// has a new version of it take over.
func (m nodeMonitor) choose(ctx context.Context, program string) {
	e := m.e
	hello, err := m.ask(ctx, wire.Request{Op: wire.OpHello})
	if err != nil {
		e.log.Warn("containers get a conmon each: the node's monitor cannot be used", "error", err)
		return
	}
	e.ownMonitor = true
	running, runningErr := os.Stat(fmt.Sprintf("/proc/%d/exe", hello.PID))
	wanted, wantedErr := os.Stat(program)
	if runningErr == nil && wantedErr == nil && !os.SameFile(running, wanted) {
		e.log.Info("a new version of the container monitor takes over", "program", program)
		if _, err := m.ask(ctx, wire.Request{Op: wire.OpUpgrade}); err != nil {
			e.log.Warn("the container monitor cannot be replaced", "error", err)
		}
	}
}

// watched returns the containers that the node's monitor has.
func (m nodeMonitor) watched(ctx context.Context) (all []wire.Watched, err error) {
	if m.e.monitorSocket == "" {
		return nil, nil
	}
	if _, err := os.Lstat(m.marker()); err != nil {
		return nil, nil // it has never had any, and need not be started for this
	}
	for last := ""; ; last = all[len(all)-1].ID {
		reply, err := m.ask(ctx, wire.Request{Op: wire.OpList, ID: last})
		if errors.Is(err, errNoMonitor) { // nobody listens any more
			return nil, nil
		}
		all = append(all, reply.Watched...)
		if err != nil || len(reply.Watched) < wire.MaxWatched {
			return all, err
		}
	}
}

// marker is a file that is there once a container was given to the node's monitor. It lies
// beside the socket, and so is gone with the node.
func (m nodeMonitor) marker() string {
	return filepath.Join(filepath.Dir(m.e.monitorSocket), "monitored")
}

func (m nodeMonitor) exit(id string, c Container) (Exit, bool, error) {
	if c.Init.Alive() {
		return Exit{}, false, nil
	}
	reply, err := m.ask(context.Background(), wire.Request{Op: wire.OpStatus, ID: id})
	if errors.Is(err, errUnwatched) || errors.Is(err, errNoMonitor) {
		return Exit{}, false, nil
	}
	if err != nil || reply.Exit == nil {
		return Exit{}, false, err
	}
	return Exit{Code: reply.Exit.Code(), At: reply.Exit.At, OOMKilled: reply.Exit.OOM}, true, nil
}

func (m nodeMonitor) settled(ctx context.Context, id string, c Container) <-chan error {
	done := make(chan error, 1)
	go func() {
		err := c.Init.Wait(ctx)
		if err == nil {
			_, err = m.insist(ctx, wire.Request{Op: wire.OpWait, ID: id})
		}
		if errors.Is(err, errUnwatched) || errors.Is(err, errNoMonitor) {
			err = nil
		}
		done <- err
	}()
	return done
}

func (m nodeMonitor) giveUp(ctx context.Context, id string, _ Container) error {
	m.e.log.Warn("a container's output does not end with it, what still comes is dropped", "container", id)
	_, err := m.ask(ctx, wire.Request{Op: wire.OpFinish, ID: id})
	return err
}

func (m nodeMonitor) release(ctx context.Context, id string, c Container) error {
	if !c.Init.IsZero() {
		grace, cancel := context.WithTimeout(ctx, conmonGrace)
		<-m.settled(grace, id, c)
		cancel()
	}
	_, err := m.ask(ctx, wire.Request{Op: wire.OpDrop, ID: id})
	if errors.Is(err, errNoMonitor) {
		return nil
	}
	return err
}

func (m nodeMonitor) reopen(ctx context.Context, id string, c Container) error {
	if !c.Init.Alive() {
		return ErrNotRunning
	}
	unlock, err := lockDir(ctx, c.Bundle)
	if err != nil {
		return err
	}
	defer unlock()
	log, err := c.replaceLog(func(st *unix.Stat_t) (bool, error) {
		reply, err := m.ask(ctx, wire.Request{Op: wire.OpStatus, ID: id})
		return reply.Log != nil && reply.Log.Dev == uint64(st.Dev) && reply.Log.Ino == st.Ino, err
	})
	if log == nil || err != nil {
		return err
	}
	defer log.close()
	if err := log.install(); err != nil {
		log.discard()
		return err
	}
	reply, err := m.ask(ctx, wire.Request{Op: wire.OpReopen, ID: id}, fdOf(log.file))
	if err != nil && reply.Error != "" { // otherwise it may have it, or get it yet
		log.discard()
	}
	if err != nil && reply.Ended {
		return ErrNotRunning
	}
	return err
}

// lockDir locks a directory against others who do, also of another server.
func lockDir(ctx context.Context, path string) (unlock func(), err error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		return nil, ErrNotRunning
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	err = poll(ctx, func() (bool, error) {
		err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		if err == unix.EWOULDBLOCK {
			return false, nil
		}
		return err == nil, err
	})
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { unix.Close(fd) }, nil
}

// signalled is what a launcher's end by a signal is called.
func signalled(state *os.ProcessState) string {
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return " (ended by signal: " + ws.Signal().String() + ")"
	}
	return ""
}
