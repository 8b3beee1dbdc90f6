package egress

import (
	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data (linux/seccomp.h); arguments are 64 bits wide, low word first.
const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16
)

// The classic BPF operations of the filter (linux/bpf_common.h).
const (
	opLoad = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	opJeq  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	opJset = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
	opRet  = unix.BPF_RET | unix.BPF_K
)

// Options of TCP sockets by which a SYN carries data (linux/tcp.h).
const (
	tcpFastOpenConnect  = 30
	tcpFastOpenNoCookie = 34
)

// refuse and missing end a call with an error, ask suspends it.
const (
	allow   = unix.SECCOMP_RET_ALLOW
	ask     = unix.SECCOMP_RET_USER_NOTIF
	refuse  = unix.SECCOMP_RET_ERRNO | uint32(unix.EOPNOTSUPP)
	missing = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
)

// filter is the program for processes of a pod that is switched. Calls of another
// architecture's form are let through: what they connect stays in the pod's network, or
// is welded.
func filter() []unix.SockFilter {
	argument := func(n uint32) uint32 { return offArgs + 8*n }
	flags := func(number uintptr, n uint32) []unix.SockFilter {
		return onCall(number, []unix.SockFilter{
			{Code: opLoad, K: argument(n)},
			{Code: opJset, K: unix.MSG_FASTOPEN, Jf: 1},
			{Code: opRet, K: refuse},
			{Code: opRet, K: allow},
		})
	}
	program := []unix.SockFilter{
		{Code: opLoad, K: offArch},
		{Code: opJeq, K: auditArch, Jt: 1},
		{Code: opRet, K: allow},
		{Code: opLoad, K: offNumber},
	}
	for _, part := range [][]unix.SockFilter{
		onCall(unix.SYS_CONNECT, []unix.SockFilter{{Code: opRet, K: ask}}),
		onCall(unix.SYS_LISTEN, []unix.SockFilter{{Code: opRet, K: ask}}),
		flags(unix.SYS_SENDTO, 3),
		flags(unix.SYS_SENDMSG, 2),
		flags(unix.SYS_SENDMMSG, 3),
		onCall(unix.SYS_SETSOCKOPT, []unix.SockFilter{
			{Code: opLoad, K: argument(1)},
			{Code: opJeq, K: unix.IPPROTO_TCP, Jf: 4},
			{Code: opLoad, K: argument(2)},
			{Code: opJeq, K: tcpFastOpenConnect, Jt: 1},
			{Code: opJeq, K: tcpFastOpenNoCookie, Jf: 1},
			{Code: opRet, K: refuse},
			{Code: opRet, K: allow},
		}),
		// It would connect without being asked. Programs fall back, as on kernels that have not got it.
		onCall(unix.SYS_IO_URING_SETUP, []unix.SockFilter{{Code: opRet, K: missing}}),
		{{Code: opRet, K: allow}},
	} {
		program = append(program, part...)
	}
	return program
}

// onCall runs code, which ends in returns, for one call.
func onCall(number uintptr, code []unix.SockFilter) []unix.SockFilter {
	return append([]unix.SockFilter{{Code: opJeq, K: uint32(number), Jf: uint8(len(code))}}, code...)
}
