package ocispec

import specs "github.com/opencontainers/runtime-spec/specs-go"

// seccompABIs are those of the machine, the native one first.
var seccompABIs = []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32}

// audited are the architectures by the kernel's numbers, a wrong one, and none.
var audited = []uint32{0xc000003e, 0x40000003, 0xc00000b7, 0}

// unheardOf reports whether no call has this number yet.
func unheardOf(arch, nr uint32) bool {
	const x32 = 0x40000000
	switch {
	case nr == ^uint32(0) || arch != 0xc000003e && arch != 0x40000003:
		return false
	case arch == 0xc000003e && nr&x32 != 0:
		return nr&^x32 > 547
	}
	return nr > 511
}

func callNumbers() []uint32 {
	const uretprobe = 335 // put into a gap of the table after libseccomp 2.5.4
	var out []uint32
	for nr := uint32(0); nr <= lastKnown; nr++ {
		if nr != uretprobe {
			out = append(out, nr, nr|0x40000000)
		}
	}
	for nr := uint32(512); nr < 560; nr++ {
		out = append(out, nr|0x40000000)
	}
	return append(out, 0x3fffffff, 0x7fffffff, 0x80000000, 0xfffffffe, 0xffffffff)
}
