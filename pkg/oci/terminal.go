package oci

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/stdio"
)

// terminal is the one stream of a command with a terminal: we hold its master.
type terminal struct {
	socket   string // where the runtime sends the master to
	listener *net.UnixListener
	dir      *os.File
	streams  stdio.Streams
	ready    chan struct{} // closed when there will be no other master
	stop     context.CancelFunc

	mu     sync.Mutex
	closed bool
	master *os.File
	out    *output
}

// newConsoleSocket listens for the terminal's master, which the runtime opens
// in the container and sends over (SCM_RIGHTS).
func newConsoleSocket(dir string, s stdio.Streams) (*terminal, error) {
	ctx, stop := context.WithCancel(context.Background())
	t := &terminal{streams: s, ready: make(chan struct{}), stop: stop}
	var err error
	if t.dir, err = os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0); err != nil {
		stop()
		return nil, err
	}
	// Through a descriptor: sun_path holds 108 bytes only.
	addr := &net.UnixAddr{Name: fmt.Sprintf("/proc/self/fd/%d/console", t.dir.Fd()), Net: "unix"}
	if t.listener, err = net.ListenUnix("unix", addr); err != nil {
		stop()
		t.dir.Close()
		return nil, fmt.Errorf("console socket: %w", err)
	}
	if t.socket = filepath.Join(dir, "console"); len(t.socket) > 107 {
		t.socket = fmt.Sprintf("/proc/%d/fd/%d/console", os.Getpid(), t.dir.Fd())
	}
	go func() {
		defer close(t.ready)
		conn, err := t.listener.AcceptUnix()
		if err != nil {
			return
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		if master, err := receiveFile(conn); err == nil {
			t.use(ctx, master)
		}
	}()
	return t, nil
}

func receiveFile(conn *net.UnixConn) (*os.File, error) {
	data, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(data, oob)
	if err != nil {
		return nil, err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) == 0 {
		return nil, fmt.Errorf("no terminal came over the console socket: %w", err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) == 0 {
		return nil, fmt.Errorf("no terminal came over the console socket: %w", err)
	}
	return pollable(fds[0], "terminal")
}

// pollable makes a file whose reads can be interrupted and hold no thread.
func pollable(fd int, name string) (*os.File, error) {
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// use connects the streams to the master.
func (t *terminal) use(ctx context.Context, master *os.File) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		master.Close()
		return
	}
	t.master = master
	t.out = copyOutput(master, t.streams.Stdout)
	if t.streams.Stdin != nil {
		go func() { _, _ = io.Copy(master, t.streams.Stdin) }()
	}
	if t.streams.Resize != nil {
		go func() {
			for {
				select {
				case <-ctx.Done():
					return
				case size, ok := <-t.streams.Resize:
					if !ok {
						return
					}
					setSize(master, size)
				}
			}
		}()
	}
}

func setSize(master *os.File, size stdio.TerminalSize) {
	conn, err := master.SyscallConn()
	if err != nil {
		return
	}
	_ = conn.Control(func(fd uintptr) {
		_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Height, Col: size.Width})
	})
}

func (t *terminal) started() {}

func (t *terminal) finish(ctx context.Context) {
	// The command has ended: a terminal that is not here yet never comes, unless
	// it waits in the queue.
	_ = t.listener.SetDeadline(time.Now().Add(10 * time.Millisecond))
	<-t.ready
	t.mu.Lock()
	out := t.out
	t.mu.Unlock()
	if out != nil {
		out.finish(ctx, 100*time.Millisecond)
	}
}

func (t *terminal) close() {
	t.stop()
	t.listener.Close()
	t.dir.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	if t.master != nil {
		t.master.Close()
	}
}

// holds is false: closing the master hangs the terminal up for all that have it.
func (t *terminal) holds(string) bool { return false }
