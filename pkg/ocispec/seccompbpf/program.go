package seccompbpf

import (
	"maps"
	"slices"
)

// Instruction is struct sock_filter of linux/filter.h.
type Instruction struct {
	Code   uint16
	Jt, Jf uint8
	K      uint32
}

// The classic BPF operations that a seccomp filter needs (linux/bpf_common.h).
const (
	opLoad = 0x20 // A = word at K
	opAnd  = 0x54 // A &= K
	opJump = 0x05 // pc += K
	opJeq  = 0x15
	opJgt  = 0x25
	opJge  = 0x35
	opRet  = 0x06
)

// Offsets in struct seccomp_data (linux/seccomp.h). Arguments are 64 bits wide,
// low word first: all architectures with a table here are little-endian.
const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16
)

const maxInstructions = 4096 // BPF_MAXINSNS

func ret(action uint32) []Instruction { return []Instruction{{Code: opRet, K: action}} }

// span is the code for the call numbers from start up to the next span.
type span struct {
	start uint32
	code  []Instruction
}

// search returns code that finds the span of the number in the accumulator by
// bisection. Every span's code ends in a return.
func search(spans []span) []Instruction {
	if len(spans) == 1 {
		return spans[0].code
	}
	mid := len(spans) / 2
	left, right := search(spans[:mid]), search(spans[mid:])
	code := make([]Instruction, 0, 2+len(left)+len(right))
	code = append(code, branch(opJge, spans[mid].start, len(left))...)
	code = append(code, left...)
	return append(code, right...)
}

// branch skips the next n instructions when the comparison holds.
func branch(op uint16, k uint32, n int) []Instruction {
	if n <= 255 {
		return []Instruction{{Code: op, Jt: uint8(n), K: k}}
	}
	return []Instruction{{Code: op, Jf: 1, K: k}, {Code: opJump, K: uint32(n)}}
}

// spansOf joins neighbouring numbers of equal code and fills the gaps.
func spansOf(leaves map[uint32][]Instruction, d defaults) []span {
	numbers := slices.Concat(slices.Collect(maps.Keys(leaves)), d.edges)
	slices.Sort(numbers)
	numbers = slices.Compact(numbers)
	spans := []span{{0, d.code(0)}}
	add := func(start uint32, code []Instruction) {
		last := &spans[len(spans)-1]
		switch {
		case slices.Equal(last.code, code):
		case last.start == start:
			last.code = code
			if n := len(spans); n > 1 && slices.Equal(spans[n-2].code, code) {
				spans = spans[:n-1]
			}
		default:
			spans = append(spans, span{start, code})
		}
	}
	for _, nr := range numbers {
		code, ok := leaves[nr]
		if !ok {
			code = d.code(nr)
		}
		add(nr, code)
		if nr != ^uint32(0) {
			add(nr+1, d.code(nr+1))
		}
	}
	return spans
}
