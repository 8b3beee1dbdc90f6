package seccompbpf

import (
	"fmt"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// condition compares one argument of a system call.
type condition struct {
	index uint
	op    specs.LinuxSeccompOperator
	value uint64 // the mask for OpMaskedEqual
	two   uint64 // what the masked argument must be, for OpMaskedEqual
}

// rule gives action when all of its conditions hold.
type rule struct {
	conditions []condition
	action     uint32
}

// ruleSet collects the rules of one architecture by call number.
type ruleSet map[uint32][]rule

// add refuses what has no meaning that is independent of the order in which
// libseccomp happens to test: two different actions for one call, unless their
// conditions exclude each other.
func (s ruleSet) add(nr uint32, r rule) error {
	for _, other := range s[nr] {
		if slices.Equal(other.conditions, r.conditions) && other.action == r.action {
			return nil
		}
		if other.action != r.action && !exclusive(other.conditions, r.conditions) {
			return fmt.Errorf("%w: two actions for system call %d", ErrUnsupported, nr)
		}
	}
	s[nr] = append(s[nr], r)
	return nil
}

// exclusive reports whether a and b can be seen never to hold together.
func exclusive(a, b []condition) bool {
	for _, x := range a {
		for _, y := range b {
			if x.index == y.index && x.op == specs.OpEqualTo && y.op == specs.OpEqualTo && x.value != y.value {
				return true
			}
		}
	}
	return false
}

// code returns the test of all rules of one call; none holds: fallback.
func (a *arch) code(rules []rule, fallback uint32) []Instruction {
	for _, r := range rules {
		if len(r.conditions) == 0 {
			return ret(r.action)
		}
	}
	var out []Instruction
	for _, r := range rules {
		block := ret(r.action)
		// From the last condition to the first: then the distance to the end of
		// the block, where a failed condition goes, is known.
		for i := len(r.conditions) - 1; i >= 0; i-- {
			block = append(a.test(r.conditions[i], len(block)), block...)
		}
		out = append(out, block...)
	}
	return append(out, ret(fallback)...)
}

// test returns code that falls through when c holds and otherwise skips the
// rest instructions that follow it.
func (a *arch) test(c condition, rest int) []Instruction {
	low := Instruction{Code: opLoad, K: uint32(offArgs + 8*c.index)}
	high := Instruction{Code: opLoad, K: low.K + 4}
	vl, vh := uint32(c.value), uint32(c.value>>32)
	fail := uint8(rest)
	if c.op == specs.OpMaskedEqual {
		tl, th := uint32(c.two), uint32(c.two>>32)
		code := []Instruction{low, {Code: opAnd, K: vl}, {Code: opJeq, K: tl & vl, Jf: fail}}
		if !a.wide {
			return code
		}
		return append([]Instruction{high, {Code: opAnd, K: vh}, {Code: opJeq, K: th & vh, Jf: fail + 3}}, code...)
	}
	lowTest := map[specs.LinuxSeccompOperator]Instruction{
		specs.OpEqualTo:      {Code: opJeq, K: vl, Jf: fail},
		specs.OpNotEqual:     {Code: opJeq, K: vl, Jt: fail},
		specs.OpGreaterThan:  {Code: opJgt, K: vl, Jf: fail},
		specs.OpGreaterEqual: {Code: opJge, K: vl, Jf: fail},
		specs.OpLessThan:     {Code: opJge, K: vl, Jt: fail},
		specs.OpLessEqual:    {Code: opJgt, K: vl, Jt: fail},
	}[c.op]
	code := []Instruction{low, lowTest}
	if !a.wide {
		return code
	}
	// The high words decide unless they are equal; 2 skips the low test.
	switch c.op {
	case specs.OpEqualTo:
		code = append([]Instruction{high, {Code: opJeq, K: vh, Jf: fail + 2}}, code...)
	case specs.OpNotEqual:
		code = append([]Instruction{high, {Code: opJeq, K: vh, Jf: 2}}, code...)
	case specs.OpGreaterThan, specs.OpGreaterEqual:
		code = append([]Instruction{high, {Code: opJgt, K: vh, Jt: 3}, {Code: opJeq, K: vh, Jf: fail + 2}}, code...)
	default:
		code = append([]Instruction{high, {Code: opJgt, K: vh, Jt: fail + 3}, {Code: opJeq, K: vh, Jf: 2}}, code...)
	}
	return code
}
