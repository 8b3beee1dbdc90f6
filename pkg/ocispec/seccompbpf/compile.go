// Package seccompbpf compiles an OCI seccomp profile to the classic BPF program
// that seccomp(2) loads, without libseccomp and without cgo. The result decides
// as libseccomp's does; only the order of the tests is another one (bisection).
// What it cannot promise to compile in the same sense is ErrUnsupported, and the
// OCI runtime is then to compile the profile itself.
package seccompbpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// ErrUnsupported says that the profile (or this architecture) is outside of what
// Compile covers. The profile may still be valid.
var ErrUnsupported = errors.New("seccomp profile is left to the OCI runtime")

// Return values of a filter (linux/seccomp.h).
const (
	retKillProcess = 0x80000000
	retKillThread  = 0
	retTrap        = 0x00030000
	retErrno       = 0x00050000
	retTrace       = 0x7ff00000
	retLog         = 0x7ffc0000
	retAllow       = 0x7fff0000
)

// x32Start is the bit that marks the calls of the x32 ABI.
const x32Start = 0x40000000

// Compile returns the program as an array of struct sock_filter in the machine's
// byte order. Names of calls that an architecture does not have are left out, as
// the OCI runtimes do. ErrUnsupported when the profile asks for a notify
// listener, names an unknown architecture, action or operator, gives two actions
// to one call, or gets too long.
//
// Calls that are newer than every call that the profile names fail with ENOSYS instead of
// the default action, unless that lets calls through: a C library tries an older call then,
// which EPERM would keep it from. runc does the same with libseccomp's program.
func Compile(profile *specs.LinuxSeccomp) ([]byte, error) {
	program, err := assemble(profile)
	if err != nil {
		return nil, err
	}
	out := make([]byte, 0, 8*len(program))
	for _, i := range program {
		out = binary.NativeEndian.AppendUint16(out, i.Code)
		out = append(out, i.Jt, i.Jf)
		out = binary.NativeEndian.AppendUint32(out, i.K)
	}
	return out, nil
}

func assemble(profile *specs.LinuxSeccomp) ([]Instruction, error) {
	if profile == nil || profile.ListenerPath != "" {
		return nil, fmt.Errorf("%w: no profile, or one with a listener", ErrUnsupported)
	}
	fallback, err := action(profile.DefaultAction, profile.DefaultErrnoRet)
	if err != nil {
		return nil, err
	}
	archs, err := architectures(profile.Architectures)
	if err != nil {
		return nil, err
	}
	program := []Instruction{{Code: opLoad, K: offArch}}
	var x32 *arch
	if i := slices.IndexFunc(archs, func(a *arch) bool { return a.x32 }); i >= 0 {
		x32 = archs[i]
		archs = slices.Delete(archs, i, i+1)
	}
	for _, a := range archs {
		block, err := a.block(profile, fallback, x32)
		if err != nil {
			return nil, err
		}
		program = append(program, Instruction{Code: opJeq, K: a.audit, Jt: 1}, Instruction{Code: opJump, K: uint32(len(block))})
		program = append(program, block...)
	}
	// An architecture that the profile does not name: the thread is killed.
	program = append(program, ret(retKillThread)...)
	if len(program) > maxInstructions {
		return nil, fmt.Errorf("%w: %d instructions", ErrUnsupported, len(program))
	}
	return program, nil
}

// architectures always includes the machine's own, as the OCI runtimes do.
func architectures(names []specs.Arch) ([]*arch, error) {
	f := nativeFamily()
	if f.native == "" {
		return nil, fmt.Errorf("%w: no system call table for this machine", ErrUnsupported)
	}
	wanted := []specs.Arch{f.native}
	for _, name := range names {
		if !slices.Contains(wanted, name) {
			wanted = append(wanted, name)
		}
	}
	var out []*arch
	for _, name := range wanted {
		make, ok := f.members[name]
		if !ok {
			return nil, fmt.Errorf("%w: architecture %q", ErrUnsupported, name)
		}
		out = append(out, make())
	}
	return out, nil
}

// block returns the code for one audit architecture; x32 is nil or shares it.
func (a *arch) block(profile *specs.LinuxSeccomp, fallback uint32, x32 *arch) ([]Instruction, error) {
	leaves := map[uint32][]Instruction{}
	members := []*arch{a}
	if a.audit == 0xc000003e && x32 != nil {
		members = append(members, x32)
	}
	d := defaults{refused: ret(fallback)}
	for _, m := range members {
		set, err := m.rules(profile, fallback)
		if err != nil {
			return nil, err
		}
		for nr, rules := range set {
			leaves[nr] = m.code(rules, fallback)
		}
		d.add(m, profile)
	}
	spans := spansOf(leaves, d)
	if a.audit == 0xc000003e && x32 == nil {
		// x32 calls come with the audit number of x86_64. -1 is what a tracer
		// leaves when it has skipped a call.
		spans = slices.DeleteFunc(spans, func(s span) bool { return s.start >= x32Start })
		spans = append(spans, span{x32Start, ret(retKillThread)}, span{^uint32(0), d.refused})
	}
	return append([]Instruction{{Code: opLoad, K: offNumber}}, search(spans)...), nil
}

func (a *arch) rules(profile *specs.LinuxSeccomp, fallback uint32) (ruleSet, error) {
	set := ruleSet{}
	for _, call := range profile.Syscalls {
		act, err := action(call.Action, call.ErrnoRet)
		if err != nil {
			return nil, err
		}
		if act == fallback {
			continue
		}
		alternatives, err := conditions(call.Args)
		if err != nil {
			return nil, err
		}
		for _, name := range call.Names {
			for _, conds := range alternatives {
				if err := a.addCall(set, name, rule{conds, act}); err != nil {
					return nil, err
				}
			}
		}
	}
	return set, nil
}

func (a *arch) addCall(set ruleSet, name string, r rule) error {
	if nr, ok := a.numbers[name]; ok {
		if err := set.add(nr, r); err != nil {
			return err
		}
	}
	m, ok := a.mux[name]
	if !ok {
		return nil
	}
	// Behind a multiplexer the first argument is the call; the others are kept,
	// as libseccomp does.
	conds := []condition{{index: 0, op: specs.OpEqualTo, value: uint64(m.call)}}
	for _, c := range r.conditions {
		if c.index != 0 {
			conds = append(conds, c)
		}
	}
	return set.add(m.number, rule{conds, r.action})
}

// conditions returns the alternatives that a list of arguments stands for: all
// must hold, but when one argument is named twice each is an alternative (this
// is how both crun and runc read it).
func conditions(args []specs.LinuxSeccompArg) ([][]condition, error) {
	if len(args) > 6 {
		return nil, fmt.Errorf("%w: %d arguments", ErrUnsupported, len(args))
	}
	var all []condition
	var seen [6]bool
	twice := false
	for _, a := range args {
		switch a.Op {
		case specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo,
			specs.OpGreaterEqual, specs.OpGreaterThan, specs.OpMaskedEqual:
		default:
			return nil, fmt.Errorf("%w: operator %q", ErrUnsupported, a.Op)
		}
		if a.Index > 5 {
			return nil, fmt.Errorf("%w: argument %d", ErrUnsupported, a.Index)
		}
		twice = twice || seen[a.Index]
		seen[a.Index] = true
		c := condition{index: a.Index, op: a.Op, value: a.Value}
		if a.Op == specs.OpMaskedEqual {
			c.two = a.ValueTwo
		}
		all = append(all, c)
	}
	if !twice {
		return [][]condition{all}, nil
	}
	var out [][]condition
	for _, c := range all {
		out = append(out, []condition{c})
	}
	return out, nil
}

// action returns the filter's return value. EPERM where no errno is given.
func action(name specs.LinuxSeccompAction, errno *uint) (uint32, error) {
	if name == specs.ActErrno || name == specs.ActTrace {
		value := uint32(1)
		if errno != nil {
			if *errno > 0xffff {
				return 0, fmt.Errorf("%w: errno %d", ErrUnsupported, *errno)
			}
			value = uint32(*errno)
		}
		if name == specs.ActTrace {
			return retTrace | value, nil
		}
		return retErrno | value, nil
	}
	if errno != nil {
		return 0, fmt.Errorf("%w: errno with action %q", ErrUnsupported, name)
	}
	switch name {
	case specs.ActAllow:
		return retAllow, nil
	case specs.ActKill, specs.ActKillThread:
		return retKillThread, nil
	case specs.ActKillProcess:
		return retKillProcess, nil
	case specs.ActTrap:
		return retTrap, nil
	case specs.ActLog:
		return retLog, nil
	}
	return 0, fmt.Errorf("%w: action %q", ErrUnsupported, name)
}
