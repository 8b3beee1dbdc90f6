package storage

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/landlock"
)

// confinement is what a process that reads content of strangers may do. It is given to
// a thread and inherited by what that thread starts.
type confinement struct {
	// readOnly, readWrite and plain are files, or directories with all below them. What
	// does not exist is left out. In plain there can be made directories and regular files
	// only.
	readOnly, readWrite, plain []string
	// program may be executed; so may the system's programs.
	program string
	// port is that of the proxy, the only one that may be connected to; 0 is none. Before
	// Linux 6.7 it allows TCP to all.
	port uint16
}

// contentCapabilities are what unpacking a layer needs: owners, modes, devices of
// whiteouts, file capabilities, and chroot(2).
var contentCapabilities = []uint{unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_FSETID,
	unix.CAP_SYS_CHROOT, unix.CAP_MKNOD, unix.CAP_SETFCAP}

// enter confines the calling thread for good: the caller must have locked it, and must
// never unlock it. Without CAP_SYS_ADMIN containers/storage unpacks in a chroot(2)
// instead of mounts of its own, which Landlock would refuse.
func (c confinement) enter() error {
	// What is started next is init of a PID namespace: with it end all its children.
	// Best effort, since they also end with the pipes to it.
	_ = unix.Unshare(unix.CLONE_NEWPID | unix.CLONE_NEWIPC)
	return confineThread(c.rules(), contentCapabilities, refused, c.port != 0)
}

// confineThread puts the calling thread, and what it starts, under rules and seccompFilter,
// with no capabilities but kept.
func confineThread(rules landlock.Rules, kept []uint, calls []uint32, tcp bool) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	if err := rules.Enter(); err != nil {
		return fmt.Errorf("landlock: %w", err)
	}
	if err := dropCapabilities(kept); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	if err := refuseCalls(calls, tcp); err != nil {
		return fmt.Errorf("seccomp: %w", err)
	}
	return nil
}

// systemDirs have the system's programs and libraries.
var systemDirs = []string{"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix", "/gnu"}

// rules allow the files of c, and no others. A kernel without Landlock, or with its first
// version, which forbids renames between directories, is no error: then capabilities,
// seccomp and limits are what is left.
func (c confinement) rules() landlock.Rules {
	rules := landlock.Rules{
		Files: []landlock.Files{
			{Access: landlock.Read, Paths: c.readOnly},
			{Access: landlock.Read | landlock.Execute, Paths: append(systemDirs[:len(systemDirs):len(systemDirs)], c.program)},
			{Access: landlock.Read | landlock.Write, Paths: []string{"/dev/null", "/dev/zero", "/dev/urandom", "/dev/random"}},
			{Access: landlock.Change, Paths: c.readWrite},
			{Access: landlock.ChangePlain, Paths: c.plain},
		},
		NoListen: true, NoConnect: true, Scoped: true,
	}
	if c.port != 0 {
		rules.ConnectTo = []uint16{c.port}
	}
	return rules
}

// dropCapabilities leaves the calling thread, and what it starts, no others than kept.
func dropCapabilities(kept []uint) error {
	var mask uint64
	for _, c := range kept {
		mask |= 1 << c
	}
	for c := uintptr(0); c <= 63; c++ {
		if mask&(1<<c) != 0 {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			break // the kernel knows no more
		}
		if err != nil {
			return err
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
		return err
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var now, want [2]unix.CapUserData
	if err := unix.Capget(&head, &now[0]); err != nil {
		return err
	}
	for i := range want {
		want[i].Permitted = now[i].Permitted & uint32(mask>>(32*i))
		want[i].Effective = want[i].Permitted
	}
	return unix.Capset(&head, &want[0])
}

// refused are the system calls that nothing needs which unpacks an image.
var refused = append([]uint32{
	unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PIDFD_GETFD, unix.SYS_KCMP,
	unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD, unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER,
	unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_KEYCTL, unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_NAME_TO_HANDLE_AT,
	unix.SYS_UNSHARE, unix.SYS_SETNS, unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_MOVE_MOUNT, unix.SYS_OPEN_TREE,
	unix.SYS_FSOPEN, unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_FSPICK, unix.SYS_MOUNT_SETATTR,
	unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_KEXEC_LOAD, unix.SYS_KEXEC_FILE_LOAD, unix.SYS_REBOOT,
	unix.SYS_SWAPON, unix.SYS_SWAPOFF, unix.SYS_QUOTACTL, unix.SYS_QUOTACTL_FD, unix.SYS_ACCT, unix.SYS_SYSLOG, unix.SYS_VHANGUP,
	unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME, unix.SYS_CLOCK_ADJTIME, unix.SYS_ADJTIMEX, unix.SYS_PERSONALITY,
	unix.SYS_SETHOSTNAME, unix.SYS_SETDOMAINNAME, unix.SYS_FANOTIFY_INIT, unix.SYS_FANOTIFY_MARK, unix.SYS_LOOKUP_DCOOKIE,
	unix.SYS_MEMFD_SECRET, unix.SYS_MBIND, unix.SYS_MIGRATE_PAGES, unix.SYS_MOVE_PAGES, unix.SYS_SHMGET, unix.SYS_MSGGET, unix.SYS_SEMGET,
	unix.SYS_LISTEN, unix.SYS_ACCEPT, unix.SYS_ACCEPT4,
}, refusedHere...)

const newNamespaces = unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP

// refuseCalls puts the calling thread, and what it starts, under seccompFilter: without
// calls of numbers, new namespaces, and sockets but, with tcp, those of TCP over IPv4.
// Landlock does not bound connections to unix sockets by path, and behind those of the user's
// session (D-Bus, this server's own) is all that the user may do; pairs of them lead nowhere.
// Nor does it bound UDP and MPTCP, or what connects by sending (TCP Fast Open).
func refuseCalls(numbers []uint32, tcp bool) error {
	if auditArch == 0 {
		return nil
	}
	filter := seccompFilter(numbers, tcp)
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	set := func(flags uintptr) error {
		_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
		runtime.KeepAlive(filter)
		if errno != 0 {
			return errno
		}
		return nil
	}
	err := set(unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW)
	if errors.Is(err, unix.EINVAL) {
		err = set(0) // gVisor knows no flags
	}
	return err
}

// seccompFilter returns a filter that answers EPERM to the calls of numbers, to clone(2)
// with new namespaces, to leases and to sending that connects, EAFNOSUPPORT to sockets but pairs of
// AF_UNIX and, with tcp, TCP over IPv4, and ENOSYS to clone3(2), whose flags it cannot see:
// callers take clone(2) then.
func seccompFilter(numbers []uint32, tcp bool) []unix.SockFilter {
	f := []unix.SockFilter{
		{Code: bpfLoad, K: 4}, // arch, in struct seccomp_data
		{Code: bpfEqual, K: uint32(auditArch), Jt: 1},
		{Code: bpfReturn, K: unix.SECCOMP_RET_KILL_PROCESS},
		{Code: bpfLoad, K: 0}, // the call's number
		{Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, K: firstForeignCall, Jf: 1},
		refuse(unix.ENOSYS),
		{Code: bpfEqual, K: unix.SYS_CLONE3, Jf: 1},
		refuse(unix.ENOSYS),
	}
	for _, n := range numbers {
		f = append(f, unix.SockFilter{Code: bpfEqual, K: n, Jf: 1}, refuse(unix.EPERM))
	}
	// clone: the flags are its first argument on all architectures here.
	f = append(f, onCall(unix.SYS_CLONE, noneOf(0, newNamespaces, unix.EPERM)...)...)
	for call, flags := range map[uint32]uint32{unix.SYS_SENDTO: 3, unix.SYS_SENDMSG: 2, unix.SYS_SENDMMSG: 3} {
		f = append(f, onCall(call, noneOf(flags, unix.MSG_FASTOPEN, unix.EPERM)...)...)
	}
	// The server, and whoever opens such a file, would wait for this process to give it back.
	f = append(f, onCall(unix.SYS_FCNTL, argument(1), unix.SockFilter{Code: bpfEqual, K: unix.F_SETLEASE, Jf: 1}, refuse(unix.EPERM), allow)...)
	f = append(f, onCall(unix.SYS_SOCKETPAIR, append(is(0, ^uint32(0), unix.AF_UNIX), allow)...)...)
	if tcp {
		const kind = ^uint32(unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK)
		rules := slices.Concat(is(0, ^uint32(0), unix.AF_INET), is(1, kind, unix.SOCK_STREAM),
			// IPPROTO_IP is the usual one, TCP.
			[]unix.SockFilter{argument(2), {Code: bpfEqual, K: unix.IPPROTO_IP, Jt: 2}, {Code: bpfEqual, K: unix.IPPROTO_TCP, Jt: 1},
				refuse(unix.EAFNOSUPPORT), allow})
		f = append(f, onCall(unix.SYS_SOCKET, rules...)...)
	} else {
		f = append(f, onCall(unix.SYS_SOCKET, refuse(unix.EAFNOSUPPORT))...)
	}
	return append(f, allow)
}

// Instructions of a filter.
const (
	bpfLoad   = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	bpfAnd    = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
	bpfEqual  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	bpfReturn = unix.BPF_RET | unix.BPF_K
)

var allow = unix.SockFilter{Code: bpfReturn, K: unix.SECCOMP_RET_ALLOW}

func refuse(errno unix.Errno) unix.SockFilter {
	return unix.SockFilter{Code: bpfReturn, K: unix.SECCOMP_RET_ERRNO | uint32(errno)}
}

// argument loads the lower half of a call's argument.
func argument(n uint32) unix.SockFilter { return unix.SockFilter{Code: bpfLoad, K: 16 + 8*n} }

// onCall runs rules, which return, where the call has this number. It expects the number
// to be loaded.
func onCall(number uint32, rules ...unix.SockFilter) []unix.SockFilter {
	return append([]unix.SockFilter{{Code: bpfEqual, K: number, Jf: uint8(len(rules))}}, rules...)
}

// noneOf allows a call whose argument has none of bits, and refuses others.
func noneOf(n, bits uint32, errno unix.Errno) []unix.SockFilter {
	return []unix.SockFilter{argument(n), {Code: bpfAnd, K: bits}, {Code: bpfEqual, K: 0, Jf: 1}, allow, refuse(errno)}
}

// is goes on where an argument, as far as mask goes, has a value, and refuses others.
func is(n, mask, value uint32) []unix.SockFilter {
	return []unix.SockFilter{argument(n), {Code: bpfAnd, K: mask}, {Code: bpfEqual, K: value, Jt: 1}, refuse(unix.EAFNOSUPPORT)}
}

// existing returns those of paths that are set.
func existing(paths ...string) []string {
	var out []string
	for _, p := range paths {
		if p == "" {
			continue
		}
		if _, err := os.Stat(p); err == nil {
			out = append(out, p)
		}
	}
	return out
}
