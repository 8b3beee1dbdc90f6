package monitor

import (
	"errors"
	"fmt"
	goruntime "runtime"
	"syscall"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/ocispec/seccompbpf"
)

// confine takes from all threads, and those to come, what the monitor does not need: it reads
// what containers and clients send, has no file to open, and nobody to call.
func confine() error {
	if err := everyThread(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	if err := landlock(); err != nil {
		return fmt.Errorf("landlock: %w", err)
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := everyThread(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&none[0])), 0); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	if err := seccomp(); err != nil {
		return fmt.Errorf("seccomp: %w", err)
	}
	return nil
}

// everyThread makes a call in each thread of the process, as its state is each thread's.
func everyThread(trap, a1, a2, a3 uintptr) error {
	if _, _, errno := syscall.AllThreadsSyscall6(trap, a1, a2, a3, 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// landlock leaves no file to be opened, by no right that the kernel knows, and no port. A
// kernel without it is no error.
func landlock() error {
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 || abi < 2 {
		return nil
	}
	attr := unix.LandlockRulesetAttr{Handled_access_fs: 1<<14 - 1} // all of version 2
	if abi >= 4 {
		attr.Handled_access_net = unix.LANDLOCK_ACCESS_NET_BIND_TCP | unix.LANDLOCK_ACCESS_NET_CONNECT_TCP
	}
	if abi >= 6 {
		attr.Scoped = unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | unix.LANDLOCK_SCOPE_SIGNAL
	}
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr), 0)
	if errno != 0 {
		return errno
	}
	defer unix.Close(int(fd))
	return everyThread(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0)
}

// calls are the system calls of the Go runtime, and the monitor's own.
var calls = []string{
	"brk", "clock_gettime", "clock_nanosleep", "clone", "close", "exit", "exit_group", "futex", "getpid", "getrandom", "gettid",
	"gettimeofday", "madvise", "mmap", "mprotect", "munmap", "nanosleep", "prctl", "restart_syscall", "rseq", "rt_sigaction", "rt_sigprocmask",
	"rt_sigreturn", "sched_getaffinity", "sched_yield", "set_robust_list", "sigaltstack", "tgkill", "timer_create", "timer_delete", "timer_settime",
	"epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_wait", "eventfd2", "poll", "ppoll", "pipe2",
	"fcntl", "fstat", "ioctl", "lseek", "pread64", "read", "write", "splice", "fallocate", "ftruncate", "memfd_create",
	"accept4", "getpeername", "getsockname", "getsockopt", "recvfrom", "recvmsg", "sendmsg", "sendto", "setsockopt", "shutdown",
}

// seccomp allows these calls only, in all threads.
func seccomp() error {
	errno := uint(unix.EPERM)
	profile := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, DefaultErrnoRet: &errno,
		Syscalls: []specs.LinuxSyscall{{Names: calls, Action: specs.ActAllow}}}
	switch goruntime.GOARCH {
	case "amd64":
		profile.Architectures = []specs.Arch{specs.ArchX86_64}
	case "arm64":
		profile.Architectures = []specs.Arch{specs.ArchAARCH64}
	}
	filter, err := seccompbpf.Compile(profile)
	if errors.Is(err, seccompbpf.ErrUnsupported) {
		return nil
	}
	if err != nil {
		return err
	}
	const instruction = int(unsafe.Sizeof(unix.SockFilter{}))
	prog := unix.SockFprog{Len: uint16(len(filter) / instruction), Filter: (*unix.SockFilter)(unsafe.Pointer(&filter[0]))}
	_, _, failed := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	goruntime.KeepAlive(filter)
	switch failed {
	case 0, unix.EINVAL, unix.ENOSYS: // the latter: a kernel without filters
		return nil
	}
	return failed
}
