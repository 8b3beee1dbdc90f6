package ocispec

import specs "github.com/opencontainers/runtime-spec/specs-go"

// seccompABIs are those of the machine, the native one first.
var seccompABIs = []specs.Arch{specs.ArchAARCH64, specs.ArchARM}

// audited are the architectures by the kernel's numbers, a wrong one, and none.
var audited = []uint32{0xc00000b7, 0x40000028, 0xc000003e, 0}

// The first and the last of the calls that the 32-bit ABI has for itself.
const armOwnFirst, armOwnLast = 0xf0001, 0xf0006

// unheardOf reports whether no call has this number yet.
func unheardOf(arch, nr uint32) bool {
	if nr == ^uint32(0) || arch != 0xc00000b7 && arch != 0x40000028 {
		return false
	}
	return nr > 511 && (arch == 0xc00000b7 || nr < armOwnFirst || nr > armOwnLast)
}

func callNumbers() []uint32 {
	var out []uint32
	for nr := uint32(0); nr <= lastKnown; nr++ {
		out = append(out, nr)
	}
	for nr := uint32(armOwnFirst - 1); nr <= armOwnLast+1; nr++ {
		out = append(out, nr)
	}
	return append(out, 0x3fffffff, 0x7fffffff, 0x80000000, 0xfffffffe, 0xffffffff)
}
