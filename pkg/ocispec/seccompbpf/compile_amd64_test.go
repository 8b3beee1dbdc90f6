package seccompbpf

import (
	"errors"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/subpod/subpod/tests/seccomp"
)

func allowBut(calls ...specs.LinuxSyscall) *specs.LinuxSeccomp {
	return &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: calls}
}

// TestUnsupported: what has no certain meaning is left to the OCI runtime.
func TestUnsupported(t *testing.T) {
	errno := uint(1 << 17)
	one := []string{"mkdir"}
	arg := func(i uint, op specs.LinuxSeccompOperator, v uint64) []specs.LinuxSeccompArg {
		return []specs.LinuxSeccompArg{{Index: i, Op: op, Value: v}}
	}
	for name, p := range map[string]*specs.LinuxSeccomp{
		"nil":              nil,
		"listener":         {DefaultAction: specs.ActAllow, ListenerPath: "/x"},
		"notify":           allowBut(specs.LinuxSyscall{Names: one, Action: specs.ActNotify}),
		"no action":        {},
		"foreign arch":     {DefaultAction: specs.ActAllow, Architectures: []specs.Arch{specs.ArchS390X}},
		"errno too big":    allowBut(specs.LinuxSyscall{Names: one, Action: specs.ActErrno, ErrnoRet: &errno}),
		"errno with allow": {DefaultAction: specs.ActAllow, DefaultErrnoRet: &errno},
		"operator":         allowBut(specs.LinuxSyscall{Names: one, Action: specs.ActErrno, Args: arg(0, "SCMP_CMP_X", 0)}),
		"argument 6":       allowBut(specs.LinuxSyscall{Names: one, Action: specs.ActErrno, Args: arg(6, specs.OpEqualTo, 0)}),
		"two actions":      allowBut(specs.LinuxSyscall{Names: one, Action: specs.ActErrno}, specs.LinuxSyscall{Names: one, Action: specs.ActTrap}),
		"overlapping": allowBut(
			specs.LinuxSyscall{Names: one, Action: specs.ActErrno, Args: arg(0, specs.OpGreaterThan, 3)},
			specs.LinuxSyscall{Names: one, Action: specs.ActTrap, Args: arg(0, specs.OpLessThan, 9)}),
	} {
		if _, err := Compile(p); !errors.Is(err, ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestLongRules: jumps over more than 255 instructions.
func TestLongRules(t *testing.T) {
	var calls []specs.LinuxSyscall
	for v := range uint64(200) {
		calls = append(calls, specs.LinuxSyscall{
			Names: []string{"mkdir", "rmdir", "getpid"}, Action: specs.ActErrno,
			Args: []specs.LinuxSeccompArg{{Index: 0, Value: 2 * v, Op: specs.OpEqualTo}},
		})
	}
	program, err := Compile(allowBut(calls...))
	if err != nil {
		t.Fatal(err)
	}
	f := nativeFamily()
	a := f.members[f.native]()
	for name, number := range a.numbers {
		for v := range uint64(500) {
			got, err := seccomp.Run(program, seccomp.Data{Number: number, Arch: a.audit, Args: [6]uint64{v}})
			want := uint32(retAllow)
			if strings.Contains("mkdir rmdir getpid", name) && v%2 == 0 && v < 400 {
				want = retErrno | 1
			}
			if err != nil || got != want {
				t.Fatalf("%s(%d): %#x, %v, want %#x", name, v, got, err, want)
			}
		}
	}
	if _, err := Compile(allowBut(append(calls, tooMany()...)...)); !errors.Is(err, ErrUnsupported) {
		t.Errorf("a program of more than %d instructions: %v", maxInstructions, err)
	}
}

func tooMany() (calls []specs.LinuxSyscall) {
	for v := range uint64(2000) {
		calls = append(calls, specs.LinuxSyscall{
			Names: []string{"read"}, Action: specs.ActErrno,
			Args: []specs.LinuxSeccompArg{{Index: 0, Value: v, Op: specs.OpEqualTo}},
		})
	}
	return calls
}

// TestTables: a few numbers that never change, of each table.
func TestTables(t *testing.T) {
	for text, want := range map[string]map[string]uint32{
		"x86_64": {"read": 0, "personality": 135, "clone3": 435}, "x86": {"socketcall": 102, "personality": 136},
	} {
		table := map[string]map[string]uint32{"x86_64": parseTable(x8664Text), "x86": parseTable(x86Text)}[text]
		for name, number := range want {
			if table[name] != number {
				t.Errorf("%s of %s is %d, want %d", name, text, table[name], number)
			}
		}
	}
	if x := x32Table(); x["execve"] != x32Start|520 || x["getpid"] != x32Start|39 {
		t.Errorf("x32: execve %#x getpid %#x", x["execve"], x["getpid"])
	}
}
