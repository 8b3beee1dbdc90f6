package seccompbpf

import (
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

//go:generate go run gen.go

// family is the set of architectures that a process on this machine can enter.
type family struct {
	native  specs.Arch
	members map[specs.Arch]func() *arch
}

// arch is one system call ABI.
type arch struct {
	audit   uint32 // AUDIT_ARCH_* of linux/audit.h
	wide    bool   // arguments have 64 bits
	x32     bool   // shares its audit number with x86_64
	numbers map[string]uint32
	mux     map[string]muxCall
	own     []string // calls with numbers far above those of the others
}

// muxCall is a call that can also be made through a multiplexer, whose first
// argument then is call.
type muxCall struct{ number, call uint32 }

func fields(s string) []string { return strings.Fields(s) }

// parseTable reads the "name number" lines of a table.
func parseTable(text string) map[string]uint32 {
	t := make(map[string]uint32, 512)
	for line := range strings.Lines(text) {
		name, number, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok {
			continue
		}
		if n, err := strconv.ParseUint(number, 10, 32); err == nil {
			t[name] = uint32(n)
		}
	}
	return t
}
