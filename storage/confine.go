package storage

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/landlock"
)

// confinement is what a process that reads content of strangers may do. It is given to
// a thread and inherited by what that thread starts.
type confinement struct {
	// readOnly and readWrite are files, or directories with all below them. What does
	// not exist is left out.
	readOnly, readWrite []string
	// program may be executed; so may the system's programs.
	program string
	// network allows connections.
	network bool
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
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	if err := c.landlock(); err != nil {
		return fmt.Errorf("landlock: %w", err)
	}
	if err := dropCapabilities(contentCapabilities); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	if err := c.seccomp(); err != nil {
		return fmt.Errorf("seccomp: %w", err)
	}
	return nil
}

// systemDirs have the system's programs and libraries.
var systemDirs = []string{"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix", "/gnu"}

// landlock allows the calling thread the files of c, and no others. A kernel without
// Landlock, or with its first version, which forbids renames between directories, is
// no error: then capabilities, seccomp and limits are what is left.
func (c confinement) landlock() error {
	return landlock.Rules{
		Files: []landlock.Files{
			{Access: landlock.Read, Paths: c.readOnly},
			{Access: landlock.Read | landlock.Execute, Paths: append(systemDirs[:len(systemDirs):len(systemDirs)], c.program)},
			{Access: landlock.Read | landlock.Write, Paths: []string{"/dev/null", "/dev/zero", "/dev/urandom", "/dev/random"}},
			{Access: landlock.Change, Paths: c.readWrite},
		},
		NoListen: true, NoConnect: !c.network, Scoped: true,
	}.Enter()
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

// seccomp refuses the calling thread what is in refused, new namespaces, and sockets but,
// with c.network, those of IP. Landlock does not bound connections to unix sockets by
// path, and behind those of the user's session (D-Bus, this server's own) is all that the
// user may do; pairs of them lead nowhere.
func (c confinement) seccomp() error {
	if auditArch == 0 {
		return nil
	}
	var families []uint32
	if c.network {
		families = []uint32{unix.AF_INET, unix.AF_INET6}
	}
	filter := seccompFilter(refused, families)
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(filter)
	if errno != 0 {
		return errno
	}
	return nil
}

// seccompFilter returns a filter that answers EPERM to the calls of numbers and to
// clone(2) with new namespaces, EAFNOSUPPORT to sockets of other families and pairs that
// are not of AF_UNIX, and ENOSYS to clone3(2), whose flags it cannot see: callers take
// clone(2) then.
func seccompFilter(numbers, families []uint32) []unix.SockFilter {
	const (
		load, and, jump, jge, ret = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, unix.BPF_ALU | unix.BPF_AND | unix.BPF_K,
			unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, unix.BPF_RET | unix.BPF_K
		number, arch, argument = 0, 4, 16 // in struct seccomp_data
	)
	refuse := func(errno unix.Errno) unix.SockFilter {
		return unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ERRNO | uint32(errno)}
	}
	allow := unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ALLOW}
	f := []unix.SockFilter{
		{Code: load, K: arch},
		{Code: jump, K: uint32(auditArch), Jt: 1},
		{Code: ret, K: unix.SECCOMP_RET_KILL_PROCESS},
		{Code: load, K: number},
		{Code: jge, K: firstForeignCall, Jf: 1},
		refuse(unix.ENOSYS),
		{Code: jump, K: unix.SYS_CLONE3, Jf: 1},
		refuse(unix.ENOSYS),
	}
	for _, n := range numbers {
		f = append(f, unix.SockFilter{Code: jump, K: n, Jf: 1}, refuse(unix.EPERM))
	}
	// clone: the flags are its first argument on all architectures here.
	f = append(f, unix.SockFilter{Code: jump, K: unix.SYS_CLONE, Jf: 5},
		unix.SockFilter{Code: load, K: argument}, unix.SockFilter{Code: and, K: newNamespaces},
		unix.SockFilter{Code: jump, K: 0, Jf: 1}, allow, refuse(unix.EPERM))
	for _, s := range []struct {
		call     uint32
		families []uint32
	}{{unix.SYS_SOCKET, families}, {unix.SYS_SOCKETPAIR, []uint32{unix.AF_UNIX}}} {
		f = append(f, unix.SockFilter{Code: jump, K: s.call, Jf: uint8(2*len(s.families) + 2)}, unix.SockFilter{Code: load, K: argument})
		for _, family := range s.families {
			f = append(f, unix.SockFilter{Code: jump, K: family, Jf: 1}, allow)
		}
		f = append(f, refuse(unix.EAFNOSUPPORT))
	}
	return append(f, allow)
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
