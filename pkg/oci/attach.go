package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/monitor/wire"
	"github.com/subpod/subpod/pkg/stdio"
)

// The monitor puts the stream in front of each packet of output: 2 is stdout. The node's
// monitor has one more, for why it ends the connection.
const stderrPacket, errorPacket = wire.PacketStderr, wire.PacketError

// Attach connects the streams to the container's own until it ends (nil) or
// ctx is done (its error); the container runs on then. The end of Stdin closes
// the container's stdin only if it was created with StdinOnce. Any number of
// clients may be attached. ErrNotRunning when no monitor listens.
func (e *Executor) Attach(ctx context.Context, id string, c Container, s stdio.Streams) error {
	return e.monitorOf(c).attach(ctx, id, c, s)
}

func (m conmon) attach(ctx context.Context, id string, c Container, s stdio.Streams) error {
	conn, err := dialAttach(c.Bundle)
	if err != nil {
		return fmt.Errorf("attach to container %s: %w", id, err)
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	// conmon writes to its clients without a time limit, and one that does not
	// read would keep it from writing the exit file: let go of it in time.
	go func() {
		if c.Init.Wait(ctx) == nil {
			select {
			case <-ended(ctx, c.Conmon):
			case <-time.After(2 * leftoverGrace):
				conn.Close()
			}
		}
	}()
	return relay(ctx, m.e.log, conn, c, s, func(ctx context.Context, size stdio.TerminalSize) error {
		return sendControl(ctx, c, fmt.Sprintf("1 %d %d\n", size.Height, size.Width))
	})
}

// relay copies between a connection to a monitor and the client's streams until the
// monitor closes it (nil), or ctx is done (its cause).
func relay(ctx context.Context, log *slog.Logger, conn *net.UnixConn, c Container, s stdio.Streams, setSize func(context.Context, stdio.TerminalSize) error) error {
	if s.Stdin != nil && c.Stdin {
		go sendStdin(conn, s.Stdin)
	}
	if c.Terminal && s.Resize != nil {
		go resize(ctx, log, setSize, s.Resize)
	}
	if s.Attached != nil {
		s.Attached()
	}
	err := receiveOutput(conn, s)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// dialAttach connects to the attach socket through a descriptor of its
// directory: sun_path holds 108 bytes only (unix(7)).
func dialAttach(bundle string) (*net.UnixConn, error) {
	conn, err := dialPacket(bundle, attachSocket)
	if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOENT) {
		return nil, ErrNotRunning
	}
	return conn, err
}

func dialPacket(dir, name string) (*net.UnixConn, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(fd)
	path := fmt.Sprintf("/proc/self/fd/%d/%s", fd, name)
	return net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
}

// sendStdin ends with the client's stream or with the connection. Packets are
// kept below conmon's buffer of 32 KiB.
func sendStdin(conn *net.UnixConn, stdin io.Reader) {
	buf := make([]byte, 8<<10)
	for {
		n, err := stdin.Read(buf)
		if n > 0 {
			if _, err := conn.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			_ = conn.CloseWrite()
			return
		}
	}
}

// receiveOutput copies packets to the streams until the monitor closes the
// connection.
func receiveOutput(conn *net.UnixConn, s stdio.Streams) error {
	buf := make([]byte, 32<<10)
	for {
		n, err := conn.Read(buf)
		if n > 1 {
			if buf[0] == errorPacket {
				return fmt.Errorf("detached from the container, which runs on: %s", buf[1:n])
			}
			w := s.Stdout
			if buf[0] == stderrPacket {
				w = s.Stderr
			}
			if w != nil {
				if _, err := w.Write(buf[1:n]); err != nil {
					return fmt.Errorf("write to the attached client: %w", err)
				}
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET), errors.Is(err, net.ErrClosed):
			return nil
		default:
			return fmt.Errorf("read from the monitor: %w", err)
		}
	}
}

// resize hands terminal sizes on to the monitor, the latest one if they come fast:
// conmon passes them through a second FIFO, where it handles only the first of
// the lines that it reads at once.
func resize(ctx context.Context, log *slog.Logger, set func(context.Context, stdio.TerminalSize) error, sizes <-chan stdio.TerminalSize) {
	for {
		var size stdio.TerminalSize
		var ok bool
		select {
		case <-ctx.Done():
			return
		case size, ok = <-sizes:
		}
		if !ok {
			return
		}
		size, sizes = latest(size, sizes)
		err := set(ctx, size)
		if errors.Is(err, ErrNotRunning) {
			return
		}
		if err != nil && ctx.Err() == nil {
			log.Warn("cannot resize the container's terminal", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// latest takes what is waiting in the channel; a closed channel becomes nil.
func latest(size stdio.TerminalSize, sizes <-chan stdio.TerminalSize) (stdio.TerminalSize, <-chan stdio.TerminalSize) {
	for {
		select {
		case next, ok := <-sizes:
			if !ok {
				return size, nil
			}
			size = next
		default:
			return size, sizes
		}
	}
}
