package seccompbpf

import (
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// unknown is the code for a call that is newer than the profile.
var unknown = ret(retErrno | uint32(unix.ENOSYS))

// defaults gives the code for the call numbers without a rule of their own.
type defaults struct {
	refused []Instruction // the default action
	newer   []above
	edges   []uint32 // the numbers at which the code may change
}

// above are the calls from start up to end that are newer than the profile, without own.
type above struct {
	start, end uint32
	own        []uint32
}

// add has the calls of an ABI that are newer than all those that the profile names refused
// with ENOSYS, unless its default action lets calls through: a tracer sees to new calls
// itself.
func (d *defaults) add(a *arch, profile *specs.LinuxSeccomp) {
	if act := profile.DefaultAction; act == specs.ActAllow || act == specs.ActLog || act == specs.ActTrace {
		return
	}
	own := a.ownNumbers()
	newest, named := uint32(0), false
	for _, call := range profile.Syscalls {
		for _, name := range call.Names {
			if nr, known := a.numbers[name]; known && !slices.Contains(own, nr) {
				newest, named = max(newest, nr), true
			}
		}
	}
	if !named {
		return
	}
	n := above{start: newest + 1, end: ^uint32(0), own: own}
	if a.audit == 0xc000003e && !a.x32 {
		n.end = x32Start
	}
	d.newer = append(d.newer, n)
	d.edges = append(append(d.edges, n.start, n.end), own...)
	for _, nr := range own {
		d.edges = append(d.edges, nr+1)
	}
}

// ownNumbers are those of the calls that only this ABI has. They lie far above the others,
// so a name of them says nothing about the age of a profile.
func (a *arch) ownNumbers() []uint32 {
	var out []uint32
	for _, name := range a.own {
		if nr, ok := a.numbers[name]; ok {
			out = append(out, nr)
		}
	}
	return out
}

func (d defaults) code(nr uint32) []Instruction {
	for _, n := range d.newer {
		if nr >= n.start && nr < n.end && !slices.Contains(n.own, nr) {
			return unknown
		}
	}
	return d.refused
}
