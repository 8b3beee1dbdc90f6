// Package seccomp runs seccomp filters without a kernel, for tests of what compiles them.
package seccomp

import (
	"encoding/binary"
	"fmt"
)

// Offsets into struct seccomp_data.
const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16
)

// Data is struct seccomp_data without the instruction pointer.
type Data struct {
	Number, Arch uint32
	Args         [6]uint64
}

// Run interprets a program as the kernel would, and returns its decision. It
// knows all that seccomp(2) lets a filter use of classic BPF but scratch memory
// beyond 16 words, and is meant for checks, not for speed.
func Run(program []byte, d Data) (uint32, error) {
	n := len(program) / 8
	var acc, idx uint32
	var mem [16]uint32
	for pc := 0; pc < n; pc++ {
		b := program[8*pc:]
		code := binary.NativeEndian.Uint16(b)
		jt, jf := int(b[2]), int(b[3])
		k := binary.NativeEndian.Uint32(b[4:])
		operand := k
		if code&0x08 != 0 && (code&7 == 4 || code&7 == 5) {
			operand = idx
		}
		jump := func(hold bool) {
			if hold {
				pc += jt
			} else {
				pc += jf
			}
		}
		switch code {
		case 0x20:
			acc = d.word(k)
		case 0x00:
			acc = k
		case 0x01:
			idx = k
		case 0x02, 0x03, 0x60, 0x61:
			if k > 15 {
				return 0, fmt.Errorf("memory word %d", k)
			}
			switch code {
			case 0x02:
				mem[k] = acc
			case 0x03:
				mem[k] = idx
			case 0x60:
				acc = mem[k]
			default:
				idx = mem[k]
			}
		case 0x54, 0x5c:
			acc &= operand
		case 0x44, 0x4c:
			acc |= operand
		case 0x07:
			idx = acc
		case 0x87:
			acc = idx
		case 0x05:
			pc += int(k)
		case 0x15, 0x1d:
			jump(acc == operand)
		case 0x25, 0x2d:
			jump(acc > operand)
		case 0x35, 0x3d:
			jump(acc >= operand)
		case 0x45, 0x4d:
			jump(acc&operand != 0)
		case 0x06:
			return k, nil
		case 0x16:
			return acc, nil
		default:
			return 0, fmt.Errorf("instruction %d: operation %#x", pc, code)
		}
	}
	return 0, fmt.Errorf("the program runs off its end")
}

func (d Data) word(offset uint32) uint32 {
	switch {
	case offset == offNumber:
		return d.Number
	case offset == offArch:
		return d.Arch
	case offset >= offArgs && offset < offArgs+48:
		return uint32(d.Args[(offset-offArgs)/8] >> (8 * (offset % 8)))
	}
	return 0
}
