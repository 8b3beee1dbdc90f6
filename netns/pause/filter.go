package pause

import "encoding/binary"

// allowed are the system calls of the filter: those of a program that reports, waits
// and exits. It has no file that it could write to or close after its report.
var allowed = []string{"ppoll", "write", "close", "exit_group"}

// Classic BPF and seccomp (linux/filter.h, linux/seccomp.h).
const (
	bpfLoad, bpfJumpEqual, bpfReturn = 0x20, 0x15, 0x06
	offsetNumber, offsetArch         = 0, 4
	retKillProcess                   = 0x80000000
	retAllow                         = 0x7fff0000
	retEPERM                         = 0x00050001
)

// filter stores the filter and returns the address of its struct sock_fprog. Calls in
// the form of another machine end the process: their numbers mean something else.
func filter(a *assembler) uint64 {
	var prog []byte
	n := 0
	add := func(code uint16, jt, jf uint8, k uint32) {
		prog = binary.LittleEndian.AppendUint16(prog, code)
		prog = binary.LittleEndian.AppendUint32(append(prog, jt, jf), k)
		n++
	}
	add(bpfLoad, 0, 0, offsetArch)
	add(bpfJumpEqual, 1, 0, a.machine.audit)
	add(bpfReturn, 0, 0, retKillProcess)
	add(bpfLoad, 0, 0, offsetNumber)
	for i, name := range allowed {
		add(bpfJumpEqual, uint8(len(allowed)-i), 0, uint32(a.number(name)))
	}
	add(bpfReturn, 0, 0, retEPERM)
	add(bpfReturn, 0, 0, retAllow)
	return a.data(words(uint64(n), a.data(prog)))
}
