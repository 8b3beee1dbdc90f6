package seccompbpf

import (
	_ "embed"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

//go:embed syscalls/x86_64.txt
var x8664Text string

//go:embed syscalls/x86.txt
var x86Text string

// x32Own are the calls that have a number of their own in the x32 ABI: 512 and
// up, in this order (arch/x86/entry/syscalls/syscall_64.tbl of the kernel). All
// the others have the number of x86_64 with the x32 bit set.
const x32Own = "rt_sigaction rt_sigreturn ioctl readv writev recvfrom sendmsg recvmsg execve " +
	"ptrace rt_sigpending rt_sigtimedwait rt_sigqueueinfo sigaltstack timer_create mq_notify " +
	"kexec_load waitid set_robust_list get_robust_list vmsplice move_pages preadv pwritev " +
	"rt_tgsigqueueinfo recvmmsg sendmmsg process_vm_readv process_vm_writev setsockopt " +
	"getsockopt io_setup io_submit execveat preadv2 pwritev2"

// x32None are the calls of x86_64 that the x32 ABI does not have.
const x32None = "uselib _sysctl create_module get_kernel_syms query_module nfsservctl " +
	"set_thread_area get_thread_area epoll_ctl_old epoll_wait_old vserver"

func nativeFamily() family {
	return family{
		native: specs.ArchX86_64,
		members: map[specs.Arch]func() *arch{
			specs.ArchX86_64: func() *arch {
				return &arch{audit: 0xc000003e, wide: true, numbers: parseTable(x8664Text)}
			},
			specs.ArchX86: func() *arch {
				return &arch{audit: 0x40000003, numbers: parseTable(x86Text), mux: x86Mux()}
			},
			specs.ArchX32: func() *arch {
				return &arch{audit: 0xc000003e, numbers: x32Table(), x32: true, own: fields(x32Own)}
			},
		},
	}
}

func x32Table() map[string]uint32 {
	t := parseTable(x8664Text)
	for name, nr := range t {
		t[name] = nr | x32Start
	}
	for _, name := range fields(x32None) {
		delete(t, name)
	}
	for i, name := range fields(x32Own) {
		t[name] = uint32(512+i) | x32Start
	}
	return t
}

// x86Mux returns, for each call that i386 also has behind socketcall(2) or
// ipc(2), the number of that call in the first argument (linux/net.h, linux/ipc.h).
func x86Mux() map[string]muxCall {
	const socketcall, ipc = 102, 117
	m := map[string]muxCall{}
	for i, name := range fields("socket bind connect listen accept getsockname getpeername socketpair " +
		"send recv sendto recvfrom shutdown setsockopt getsockopt sendmsg recvmsg accept4 recvmmsg sendmmsg") {
		m[name] = muxCall{socketcall, uint32(i + 1)}
	}
	for base, names := range map[int]string{
		1: "semop semget semctl semtimedop", 11: "msgsnd msgrcv msgget msgctl", 21: "shmat shmdt shmget shmctl",
	} {
		for i, name := range fields(names) {
			m[name] = muxCall{ipc, uint32(base + i)}
		}
	}
	return m
}
