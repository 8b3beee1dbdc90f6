package pause

// machines by the names that Go has for them.
var machines = map[string]*machine{
	"amd64": {
		elf: 62, audit: 0xc000003e, numbers: 0,
		call: amd64Call, check: amd64Check, guard: amd64Guard, jump: amd64Jump, report: amd64Report,
	},
	"arm64": {
		elf: 183, audit: 0xc00000b7, numbers: 1,
		call: arm64Call, check: arm64Check, guard: arm64Guard, jump: arm64Jump, report: arm64Report,
	},
}

// amd64Call: the number in eax, arguments in edi, esi, edx, r10d, r8d, r9d; setting the
// lower half of a register clears the upper one.
func amd64Call(number uint64, args []uint64) []byte {
	b := imm32([]byte{0xb8}, number) // mov eax, number
	for i, v := range args {
		// mov edi, v; mov esi, v; …
		b = append(b, imm32([][]byte{{0xbf}, {0xbe}, {0xba}, {0x41, 0xba}, {0x41, 0xb8}, {0x41, 0xb9}}[i], v)...)
	}
	return append(b, 0x0f, 0x05) // syscall
}

func amd64Check(step uint64) []byte { return imm32([]byte{0xbb}, step) } // mov ebx, step

func amd64Guard(from, fail uint64) []byte {
	b := []byte{0x48, 0x85, 0xc0, 0x0f, 0x88} // test rax, rax; js fail
	return order.AppendUint32(b, uint32(fail-from-9))
}

func amd64Jump(from, to uint64) []byte { return order.AppendUint32([]byte{0xe9}, uint32(to-from-5)) } // jmp to

func amd64Report(write uint64) []byte {
	b := []byte{
		0x53,             // push rbx
		0x50,             // push rax
		0x48, 0x89, 0xe6, // mov rsi, rsp
	}
	b = append(b, imm32([]byte{0xbf}, Ready)...)      // mov edi, Ready
	b = append(b, imm32([]byte{0xba}, reportSize)...) // mov edx, reportSize
	b = append(b, imm32([]byte{0xb8}, write)...)      // mov eax, write
	return append(b, 0x0f, 0x05)                      // syscall
}

func imm32(opcode []byte, v uint64) []byte {
	return order.AppendUint32(opcode[:len(opcode):len(opcode)], uint32(v))
}

// arm64Call: the number in x8, arguments in x0 to x5.
func arm64Call(number uint64, args []uint64) []byte {
	b := arm64Set(8, number)
	for i, v := range args {
		b = append(b, arm64Set(uint32(i), v)...)
	}
	return order.AppendUint32(b, 0xd4000001) // svc #0
}

func arm64Check(step uint64) []byte { return arm64Set(19, step) } // movz x19, step

func arm64Guard(from, fail uint64) []byte {
	offset := uint32(int64(fail-from)/4) & 0x3fff
	return order.AppendUint32(nil, 0xb7f80000|offset<<5) // tbnz x0, #63, fail
}

func arm64Jump(from, to uint64) []byte {
	return order.AppendUint32(nil, 0x14000000|uint32(int64(to-from)/4)&0x3ffffff) // b to
}

func arm64Report(write uint64) []byte {
	b := order.AppendUint32(nil, 0xa9bf4fe0) // stp x0, x19, [sp, #-16]!
	b = order.AppendUint32(b, 0x910003e1)    // mov x1, sp
	b = append(b, arm64Set(0, Ready)...)
	b = append(b, arm64Set(2, reportSize)...)
	b = append(b, arm64Set(8, write)...)
	return order.AppendUint32(b, 0xd4000001) // svc #0
}

// arm64Set is movz, and movk for the upper half of 32 bits.
func arm64Set(register uint32, v uint64) []byte {
	b := order.AppendUint32(nil, 0xd2800000|uint32(v&0xffff)<<5|register)
	if high := uint32(v>>16) & 0xffff; high != 0 {
		b = order.AppendUint32(b, 0xf2a00000|high<<5|register)
	}
	return b
}
