// Package seccompnotify answers system calls of other processes in their place
// (seccomp_unotify(2)): a filter suspends a call, and whoever has the listener of the
// filter says what becomes of it.
package seccompnotify

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrGone is returned when a call no longer waits: a signal has interrupted it, or its
// process has ended.
var ErrGone = errors.New("the system call no longer waits")

// Notification is struct seccomp_notif (linux/seccomp.h): a call that waits.
type Notification struct {
	ID  uint64
	PID uint32 // of the thread, in the PID namespace of whoever receives
	_   uint32
	Call
}

// Call is struct seccomp_data.
type Call struct {
	Number             int32
	Arch               uint32
	InstructionPointer uint64
	Args               [6]uint64
}

// response is struct seccomp_notif_resp.
type response struct {
	id    uint64
	value int64
	errno int32
	flags uint32
}

// addition is struct seccomp_notif_addfd.
type addition struct {
	id    uint64
	flags uint32
	src   uint32
	dst   uint32
	newfd uint32 // flags of the new descriptor
}

// Install puts a filter, which must contain SECCOMP_RET_USER_NOTIF, on the calling thread and
// on all that it starts, and returns its listener. It takes CAP_SYS_ADMIN in the user
// namespace or no_new_privs. EBUSY when a filter of the thread has a listener already:
// the kernel allows one.
func Install(filter []unix.SockFilter) (*os.File, error) {
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	fd, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return nil, fmt.Errorf("install a seccomp filter with a listener: %w", errno)
	}
	return os.NewFile(fd, "seccomp listener"), nil
}

// Listener receives the calls that a filter suspends. Its methods may be called at the same
// time, Recv by one goroutine only.
type Listener struct {
	file *os.File
	raw  syscall.RawConn
}

// NewListener returns a Listener of its own for a listener's descriptor, which stays the
// caller's.
func NewListener(fd int) (*Listener, error) {
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("copy the descriptor of a seccomp listener: %w", err)
	}
	// So that waiting takes no thread.
	if err := unix.SetNonblock(own, true); err != nil {
		unix.Close(own)
		return nil, err
	}
	l := &Listener{file: os.NewFile(uintptr(own), "seccomp listener")}
	if l.raw, err = l.file.SyscallConn(); err != nil {
		l.file.Close()
		return nil, err
	}
	// Without it, or before Linux 6.6, an answer comes a little later.
	_ = l.control(func(fd uintptr) error {
		return ioctlValue(fd, unix.SECCOMP_IOCTL_NOTIF_SET_FLAGS, unix.SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP)
	})
	return l, nil
}

// Recv waits for the next call. io.EOF when no process has the filter any more,
// os.ErrDeadlineExceeded after Stop, os.ErrClosed after Close.
func (l *Listener) Recv() (n Notification, err error) {
	waitErr := l.raw.Read(func(fd uintptr) bool {
		var done bool
		n, done, err = receive(fd)
		return done
	})
	if waitErr != nil {
		return n, waitErr
	}
	return n, err
}

// receive takes a call that is there; done is not set when there is none. The ioctl itself
// would wait for one.
func receive(fd uintptr) (n Notification, done bool, err error) {
	for {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(p, 0); err != nil && !errors.Is(err, unix.EINTR) {
			return n, true, err
		}
		if p[0].Revents&unix.POLLIN == 0 {
			if p[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0 {
				return n, true, io.EOF
			}
			return n, false, nil
		}
		n = Notification{} // the kernel demands zeros
		err := ioctl(fd, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&n))
		switch {
		case err == nil:
			return n, true, nil
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENOENT): // the call has gone in between
		default:
			return n, true, fmt.Errorf("receive a suspended system call: %w", err)
		}
	}
}

// Valid reports whether a call that was received still waits: what was read of its process
// before is that process's, and not another one's with the same PID.
func (l *Listener) Valid(id uint64) bool {
	return l.control(func(fd uintptr) error { return ioctl(fd, unix.SECCOMP_IOCTL_NOTIF_ID_VALID, unsafe.Pointer(&id)) }) == nil
}

// Continue has the kernel execute a call as it is: what its arguments point to, and which file a
// descriptor stands for, may be other than what was seen before. ErrGone.
func (l *Listener) Continue(id uint64) error {
	return l.send(response{id: id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE})
}

// Return ends a call with a value of 0, or an error. ErrGone.
func (l *Listener) Return(id uint64, errno unix.Errno) error {
	return l.send(response{id: id, errno: -int32(errno)})
}

func (l *Listener) send(r response) error {
	err := l.control(func(fd uintptr) error { return ioctl(fd, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&r)) })
	return gone("answer a suspended system call", err)
}

// Replace puts a file into the place of a descriptor of the call's process. ErrGone.
func (l *Listener) Replace(id uint64, file, descriptor int, closeOnExec bool) error {
	a := addition{id: id, flags: unix.SECCOMP_ADDFD_FLAG_SETFD, src: uint32(file), dst: uint32(descriptor)}
	if closeOnExec {
		a.newfd = unix.O_CLOEXEC
	}
	err := l.control(func(fd uintptr) error { return ioctl(fd, unix.SECCOMP_IOCTL_NOTIF_ADDFD, unsafe.Pointer(&a)) })
	return gone("replace a descriptor of a suspended process", err)
}

// Stop ends Recv, with os.ErrDeadlineExceeded; what was received can still be answered.
// Idempotent.
func (l *Listener) Stop() { _ = l.file.SetReadDeadline(time.Unix(1, 0)) }

// Close ends Recv and all else. The calls that wait, and those to come, go on waiting as long as someone
// has a copy of the descriptor; then they fail with ENOSYS. Idempotent.
func (l *Listener) Close() error {
	if err := l.file.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

func (l *Listener) control(f func(fd uintptr) error) error {
	var err error
	if closed := l.raw.Control(func(fd uintptr) { err = f(fd) }); closed != nil {
		return closed
	}
	return err
}

func gone(what string, err error) error {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EINPROGRESS):
		return fmt.Errorf("%s: %w", what, ErrGone)
	case err != nil:
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

func ioctl(fd uintptr, request uint, arg unsafe.Pointer) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, uintptr(request), uintptr(arg))
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
			if request != unix.SECCOMP_IOCTL_NOTIF_RECV {
				continue
			}
		}
		return errno
	}
}

func ioctlValue(fd uintptr, request uint, value uintptr) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, uintptr(request), value); errno != 0 {
		return errno
	}
	return nil
}
