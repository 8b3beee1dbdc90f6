// Package proc names processes so that a reused PID is never mistaken for one
// of ours: a process is its PID together with its start time.
package proc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrGone is returned when the process no longer exists (or that its PID now belongs
// to another process).
var ErrGone = errors.New("process is gone")

// ID identifies one process for as long as the machine runs. It is stored in
// records, so its JSON form must stay stable. The zero ID names no process.
type ID struct {
	PID int `json:"pid"`
	// StartTime is field 22 of /proc/PID/stat (proc(5)): clock ticks since boot.
	StartTime uint64 `json:"startTime"`
}

// Identify returns the identity of the process that has pid now. ErrGone when
// there is none.
func Identify(pid int) (ID, error) {
	st, err := ReadStat(pid)
	if err != nil {
		return ID{}, err
	}
	return ID{PID: pid, StartTime: st.StartTime}, nil
}

// IsZero reports whether id names no process.
func (id ID) IsZero() bool { return id.PID == 0 }

// Alive reports whether the process exists and is not a zombie.
func (id ID) Alive() bool {
	if id.PID <= 0 {
		return false
	}
	st, err := ReadStat(id.PID)
	return err == nil && st.StartTime == id.StartTime && !st.Ended()
}

// Ending reports whether the process has ended or has begun to. The init of a PID namespace
// that is about to end is alive until all other processes there have been waited for, and
// fork(2) there fails with ENOMEM meanwhile (pid_namespaces(7)).
func (id ID) Ending() bool {
	st, err := ReadStat(id.PID)
	if err != nil {
		return errors.Is(err, ErrGone) // otherwise nobody can tell now
	}
	return st.StartTime != id.StartTime || st.ending()
}

// Open returns a pidfd for the process. The caller closes it. ErrGone when the
// process no longer exists.
func (id ID) Open() (*os.File, error) {
	if id.PID <= 0 {
		return nil, ErrGone
	}
	fd, err := unix.PidfdOpen(id.PID, unix.PIDFD_NONBLOCK)
	switch {
	case errors.Is(err, unix.ESRCH):
		return nil, ErrGone
	// The number is a thread's of another process now (pidfd_open(2)), or the
	// kernel does not know the flag.
	case (errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT)) && !isProcess(id.PID):
		return nil, ErrGone
	}
	if err != nil {
		return nil, fmt.Errorf("pidfd_open %d: %w", id.PID, err)
	}
	// The pidfd is taken first and the start time compared after it: the other
	// way round the PID could be reused in between.
	st, err := ReadStat(id.PID)
	if err == nil && st.StartTime != id.StartTime {
		err = ErrGone
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	// Non-blocking: os.File then hands it to the runtime's poller, and a wait
	// costs no thread.
	return os.NewFile(uintptr(fd), "pidfd:"+strconv.Itoa(id.PID)), nil
}

// isProcess reports whether a number is a process's, and not that of one of its
// further threads, which /proc serves by number as well.
func isProcess(pid int) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	return err == nil && bytes.Contains(status, fmt.Appendf(nil, "\nTgid:\t%d\n", pid))
}

// Signal sends sig to the process through a pidfd. ErrGone when it no longer
// exists.
func (id ID) Signal(sig syscall.Signal) error {
	f, err := id.Open()
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.PidfdSendSignal(int(f.Fd()), sig, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return ErrGone
	}
	if err != nil {
		return fmt.Errorf("send %s to process %d: %w", sig, id.PID, err)
	}
	return nil
}

// Wait returns nil once the process has ended (it may be a zombie still), or
// the context's error. The process need not be a child, and a wait holds no
// thread.
func (id ID) Wait(ctx context.Context) error {
	f, err := id.Open()
	if errors.Is(err, ErrGone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	conn, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("pidfd of %d: %w", id.PID, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	// A pidfd becomes readable when the process ends (pidfd_open(2)).
	var pollErr error
	err = conn.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		var n int
		for {
			n, pollErr = unix.Poll(fds, 0)
			if !errors.Is(pollErr, unix.EINTR) {
				break
			}
		}
		return n > 0 || pollErr != nil
	})
	if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil {
		return ctx.Err()
	}
	if err = errors.Join(err, pollErr); err != nil {
		return fmt.Errorf("wait for process %d: %w", id.PID, err)
	}
	return nil
}
