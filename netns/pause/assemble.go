package pause

import (
	"encoding/binary"
	"fmt"
)

// The file is one segment that is never written to: headers, data, code. Both halves
// have a fixed place, so every address is known when it is used.
const (
	base     = 0x400000
	dataAt   = 0x100
	codeAt   = 0x300
	maxSize  = 0x1000 // one page, shared by all that execute the file
	alignAll = 0x10000
)

// reportSize is the size of the report of a failure: the result of the system call,
// and the step.
const reportSize = 16

var order = binary.LittleEndian

// machine encodes what a program consists of: system calls with constant arguments,
// and jumps.
type machine struct {
	elf     uint16 // e_machine (elf(5))
	audit   uint32 // AUDIT_ARCH_… (linux/audit.h)
	numbers int    // column of numbers

	call func(number uint64, args []uint64) []byte // sets registers, enters the kernel
	// check sets the step before a call; guard, right after it, jumps to fail when the
	// call has returned an error.
	check func(step uint64) []byte
	guard func(from, fail uint64) []byte
	jump  func(from, to uint64) []byte
	// report writes result and step to Ready.
	report func(write uint64) []byte
}

// numbers has the system calls that are used: amd64, arm64.
var numbers = map[string][2]uint64{
	"capset": {126, 91}, "chdir": {80, 49}, "close": {3, 57}, "close_range": {436, 436}, "exit_group": {231, 94},
	"mount": {165, 40}, "pivot_root": {155, 41}, "ppoll": {271, 73}, "prctl": {157, 167},
	"rt_sigaction": {13, 134}, "seccomp": {317, 277}, "setgroups": {116, 159},
	"setresgid": {119, 149}, "setresuid": {117, 147}, "umount2": {166, 39}, "write": {1, 64},
}

// assembler collects code and data of one program.
type assembler struct {
	machine *machine
	code    []byte
	bytes   []byte
	calls   []string
	exit    uint64 // address of the code that exits
	fail    uint64 // address of the code that reports an error and exits
}

// compile makes the program of the steps.
func compile(arch string, steps func(*assembler)) (*Program, error) {
	m, ok := machines[arch]
	if !ok {
		return nil, fmt.Errorf("no pause process for %s machines", arch)
	}
	a := &assembler{machine: m}
	a.exit = a.here()
	a.try("exit_group", 0)
	a.fail = a.here()
	a.emit(m.report(a.number("write")))
	a.try("exit_group", 1)
	entry := a.here()
	steps(a)
	if len(a.bytes) > codeAt-dataAt || len(a.code) > maxSize-codeAt {
		return nil, fmt.Errorf("the program has %d bytes of code and %d of data: too many", len(a.code), len(a.bytes))
	}
	return &Program{ELF: a.file(entry), calls: a.calls}, nil
}

func (a *assembler) here() uint64           { return base + codeAt + uint64(len(a.code)) }
func (a *assembler) emit(code []byte)       { a.code = append(a.code, code...) }
func (a *assembler) jump(to uint64)         { a.emit(a.machine.jump(a.here(), to)) }
func (a *assembler) number(n string) uint64 { return numbers[n][a.machine.numbers] }
func (a *assembler) text(s string) uint64   { return a.data(append([]byte(s), 0)) }
func words(values ...uint64) (b []byte) {
	for _, v := range values {
		b = order.AppendUint64(b, v)
	}
	return b
}

// data stores bytes and returns their address.
func (a *assembler) data(b []byte) uint64 {
	at := base + dataAt + uint64(len(a.bytes))
	a.bytes = append(a.bytes, b...)
	for len(a.bytes)%8 != 0 {
		a.bytes = append(a.bytes, 0)
	}
	return at
}

// try makes a system call whatever it returns.
func (a *assembler) try(name string, args ...uint64) {
	a.emit(a.machine.call(a.number(name), args))
}

// call makes a system call that must succeed.
func (a *assembler) call(name string, args ...uint64) {
	a.emit(a.machine.check(uint64(len(a.calls))))
	a.calls = append(a.calls, name)
	a.try(name, args...)
	a.emit(a.machine.guard(a.here(), a.fail))
}

// file is an ELF executable (elf(5)): one segment to read and execute, and a stack
// that is not executable.
func (a *assembler) file(entry uint64) []byte {
	const headerSize, programHeaderSize, programHeaders = 64, 56, 2
	size := uint64(codeAt + len(a.code))
	b := append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 9)...)
	b = order.AppendUint16(b, 2) // ET_EXEC
	b = order.AppendUint16(b, a.machine.elf)
	b = order.AppendUint32(b, 1)
	b = append(b, words(entry, headerSize, 0)...)
	b = order.AppendUint32(b, 0)
	for _, v := range []uint16{headerSize, programHeaderSize, programHeaders, 64, 0, 0} {
		b = order.AppendUint16(b, v)
	}
	for _, p := range []struct {
		kind, flags     uint32
		at, size, align uint64
	}{
		{1, 5, base, size, alignAll}, // PT_LOAD, PF_R|PF_X
		{0x6474e551, 6, 0, 0, 16},    // PT_GNU_STACK, PF_R|PF_W
	} {
		b = order.AppendUint32(b, p.kind)
		b = order.AppendUint32(b, p.flags)
		b = append(b, words(0, p.at, p.at, p.size, p.size, p.align)...)
	}
	b = append(b, make([]byte, dataAt-len(b))...)
	b = append(b, a.bytes...)
	b = append(b, make([]byte, codeAt-len(b))...)
	return append(b, a.code...)
}
