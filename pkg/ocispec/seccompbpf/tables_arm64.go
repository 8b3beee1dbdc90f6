package seccompbpf

import (
	_ "embed"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

//go:embed syscalls/aarch64.txt
var aarch64Text string

//go:embed syscalls/arm.txt
var armText string

func nativeFamily() family {
	return family{
		native: specs.ArchAARCH64,
		members: map[specs.Arch]func() *arch{
			specs.ArchAARCH64: func() *arch {
				return &arch{audit: 0xc00000b7, wide: true, numbers: parseTable(aarch64Text)}
			},
			specs.ArchARM: func() *arch {
				return &arch{audit: 0x40000028, numbers: parseTable(armText), own: fields("breakpoint cacheflush usr26 usr32 set_tls get_tls")}
			},
		},
	}
}
