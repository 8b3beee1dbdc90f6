package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// control is conmon's control FIFO, locked against other users of it, also those
// of another server.
type control struct {
	fifo *os.File
	conn interface{ Control(func(fd uintptr)) error }
}

// openControl opens and locks the control FIFO of a container. ErrNotRunning when
// no conmon reads it.
func openControl(ctx context.Context, c Container) (*control, error) {
	// Opening without blocking fails with ENXIO when the reader is gone.
	fifo, err := os.OpenFile(filepath.Join(c.Bundle, ctlFIFO), os.O_WRONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ENXIO) || errors.Is(err, os.ErrNotExist) {
		return nil, ErrNotRunning
	}
	if err != nil {
		return nil, fmt.Errorf("open conmon's control FIFO: %w", err)
	}
	conn, err := fifo.SyscallConn()
	if err != nil {
		fifo.Close()
		return nil, fmt.Errorf("conmon's control FIFO: %w", err)
	}
	ctl := &control{fifo: fifo, conn: conn}
	err = poll(ctx, func() (bool, error) {
		var err error
		if controlErr := conn.Control(func(fd uintptr) { err = unix.Flock(int(fd), unix.LOCK_EX|unix.LOCK_NB) }); controlErr != nil {
			return false, controlErr
		}
		if errors.Is(err, unix.EWOULDBLOCK) {
			return false, nil
		}
		return err == nil, err
	})
	if err != nil {
		fifo.Close()
		return nil, fmt.Errorf("lock conmon's control FIFO: %w", err)
	}
	return ctl, nil
}

// sendControl sends one line.
func sendControl(ctx context.Context, c Container, line string) error {
	ctl, err := openControl(ctx, c)
	if err != nil {
		return err
	}
	defer ctl.close()
	return ctl.send(ctx, line)
}

// close unlocks the FIFO.
func (ctl *control) close() { ctl.fifo.Close() }

// controlTimeout bounds how long conmon may take to read a line. It blocks while
// an attached client does not read.
const controlTimeout = 5 * time.Second

// send writes a line and returns when conmon has read it: of several lines that
// it reads at once, conmon 2.1 and 2.2 handle only the first. On error conmon has
// not read it and will not.
func (ctl *control) send(ctx context.Context, line string) error {
	ctx, cancel := context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	if err := poll(ctx, ctl.isEmpty); errors.Is(err, ErrNotRunning) {
		return err
	} else if err != nil {
		return fmt.Errorf("conmon does not read its control FIFO: %w", err)
	}
	if _, err := ctl.fifo.WriteString(line); errors.Is(err, unix.EPIPE) {
		return ErrNotRunning
	} else if err != nil {
		return fmt.Errorf("write to conmon's control FIFO: %w", err)
	}
	err := poll(ctx, ctl.isEmpty)
	if errors.Is(err, ErrNotRunning) {
		return err
	}
	if err == nil || !ctl.takeBack() {
		return nil
	}
	return fmt.Errorf("conmon does not read its control FIFO: %w", err)
}

// isEmpty reports whether conmon has read all that was written. ErrNotRunning when
// it has not and no longer will: what a reader leaves stays in the FIFO for as long
// as a writer has it open.
func (ctl *control) isEmpty() (bool, error) {
	var n int
	var gone bool
	var err error
	controlErr := ctl.conn.Control(func(fd uintptr) {
		// In this order: once the reader is gone, the number does not change.
		p := []unix.PollFd{{Fd: int32(fd)}}
		if _, err = unix.Poll(p, 0); err == nil {
			gone = p[0].Revents&unix.POLLERR != 0
			n, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ)
		}
	})
	switch err := errors.Join(controlErr, err); {
	case errors.Is(err, unix.EINTR):
		return false, nil
	case err != nil:
		return false, err
	case n > 0 && gone:
		return false, ErrNotRunning
	}
	return n == 0, nil
}

// takeBack reads the FIFO in conmon's place, and reports whether there was
// something to read.
func (ctl *control) takeBack() bool {
	fd, err := unix.Open(ctl.fifo.Name(), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	n, err := unix.Read(fd, make([]byte, 4096))
	return err == nil && n > 0
}

// poll calls done until it returns true, an error, or ctx is done.
func poll(ctx context.Context, done func() (bool, error)) error {
	for pause := 50 * time.Microsecond; ; pause = min(2*pause, 5*time.Millisecond) {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}
