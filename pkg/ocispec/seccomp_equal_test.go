//go:build amd64 || arm64

package ocispec

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/subpod/subpod/pkg/ocispec/seccompbpf"
	"github.com/subpod/subpod/tests/seccomp"
)

// libseccompProgram has crun compile the profile of out with libseccomp, and
// returns the program that it loads.
func libseccompProgram(t *testing.T, out Output) []byte {
	t.Helper()
	cmd := runtimeCommand(t, "crun", out, false, "create", "test")
	root := filepath.Join(cmd.Dir, "state")
	if err := cmd.Run(); err != nil { // not CombinedOutput: init keeps its end of a pipe open
		t.Fatalf("crun create: %v", err)
	}
	defer func() {
		if b, err := exec.Command("crun", "--root", root, "--cgroup-manager=disabled", "delete", "-f", "test").CombinedOutput(); err != nil {
			t.Errorf("crun delete: %v\n%s", err, b)
		}
	}()
	program, err := os.ReadFile(filepath.Join(root, "test", "seccomp.bpf"))
	must(t, err)
	if len(program) == 0 {
		t.Fatal("crun wrote no program")
	}
	return program
}

// lastKnown is the newest call that Debian 12's libseccomp 2.5.4 knows
// (set_mempolicy_home_node); newer ones are known to us only.
const lastKnown = 450

// TestSeccompEqualsLibseccomp compares the decisions of our program with those of
// the program that libseccomp makes of the same profile: for every call number of
// all ABIs, every argument edge of the profile, and wrong architectures.
func TestSeccompEqualsLibseccomp(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	profiles := map[string]*specs.LinuxSeccomp{}
	for name, caps := range map[string][]string{"default": defaultCaps, "none": nil, "all": capNames, "admin": {"CAP_SYS_ADMIN"}} {
		e, err := resolveProfile(nil, caps)
		must(t, err)
		profiles["moby/"+name] = e.profile
	}
	e, err := resolveProfile([]byte(onlyHandles), nil)
	must(t, err)
	profiles["only handles"] = e.profile
	for name, p := range edgeProfiles() {
		profiles[name] = p
	}
	for name, p := range profiles {
		t.Run(name, func(t *testing.T) {
			ours, err := seccompbpf.Compile(p)
			must(t, err)
			in := testInput(t, "true")
			out, err := Build(in)
			must(t, err)
			out.Spec.Linux.Seccomp = p
			compareFilters(t, p, ours, libseccompProgram(t, out))
		})
	}
}

func compareFilters(t *testing.T, p *specs.LinuxSeccomp, ours, theirs []byte) {
	t.Helper()
	t.Logf("instructions: ours %d, libseccomp %d", len(ours)/8, len(theirs)/8)
	rng := rand.New(rand.NewPCG(1, 2))
	values := argumentEdges(p)
	bad, tried := 0, 0
	for _, arch := range audited {
		for _, nr := range callNumbers() {
			for i := range 60 {
				data := seccomp.Data{Number: nr, Arch: arch}
				for a := range data.Args {
					data.Args[a] = values[rng.IntN(len(values))]
				}
				if i < len(values) {
					data.Args[0] = values[i]
				}
				tried++
				x, err := seccomp.Run(ours, data)
				must(t, err)
				y, err := seccomp.Run(theirs, data)
				must(t, err)
				if p.DefaultAction == specs.ActErrno && unheardOf(arch, nr) {
					y = 0x50000 | 38 // newer than the profile: libseccomp has the default action
				}
				if x != y {
					if bad++; bad < 20 {
						t.Errorf("%+v: ours %#x, libseccomp %#x", data, x, y)
					}
				}
			}
		}
	}
	t.Logf("%d decisions compared, %d differ", tried, bad)
}

// argumentEdges are the values around all those that the profile compares with.
func argumentEdges(p *specs.LinuxSeccomp) []uint64 {
	out := []uint64{0, 1, 2, 0xffffffff, 0x100000000, ^uint64(0)}
	for i := range uint64(25) {
		out = append(out, i)
	}
	for _, s := range p.Syscalls {
		for _, a := range s.Args {
			for _, v := range []uint64{a.Value, a.ValueTwo} {
				out = append(out, v, v-1, v+1, v|1<<32, v^1<<33, v&0xffffffff)
			}
		}
	}
	return out
}

func edgeProfiles() map[string]*specs.LinuxSeccomp {
	nosys, perm := uint(38), uint(1)
	arg := func(i uint, op specs.LinuxSeccompOperator, v, two uint64) specs.LinuxSeccompArg {
		return specs.LinuxSeccompArg{Index: i, Op: op, Value: v, ValueTwo: two}
	}
	one := func(a ...specs.LinuxSeccompArg) []specs.LinuxSyscall {
		return []specs.LinuxSyscall{{Names: []string{"acct", "socket", "semop", "mincore", "get_tls", "nosuchcall"}, Action: specs.ActErrno, ErrnoRet: &nosys, Args: a}}
	}
	all := seccompABIs
	allow := func(archs []specs.Arch, calls []specs.LinuxSyscall) *specs.LinuxSeccomp {
		return &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Architectures: archs, Syscalls: calls}
	}
	big := uint64(0x1_2345_6789)
	out := map[string]*specs.LinuxSeccomp{
		"native only":   allow(all[:1], one()),
		"no arch named": allow(nil, one()),
		"all but one":   allow(all[:len(all)-1], one()),
		"two arguments": allow(all, one(arg(0, specs.OpEqualTo, 3, 0), arg(2, specs.OpGreaterThan, big, 0))),
		"one twice":     allow(all, one(arg(0, specs.OpEqualTo, 3, 0), arg(0, specs.OpEqualTo, 5, 0))),
		"actions": allow(all, []specs.LinuxSyscall{
			{Names: []string{"syslog"}, Action: specs.ActTrap}, {Names: []string{"tkill"}, Action: specs.ActLog},
			{Names: []string{"tgkill"}, Action: specs.ActKillProcess}, {Names: []string{"ptrace"}, Action: specs.ActTrace, ErrnoRet: &perm},
			{Names: []string{"acct"}, Action: specs.ActKillThread}, {Names: []string{"sync"}, Action: specs.ActAllow},
		}),
	}
	for _, op := range []specs.LinuxSeccompOperator{specs.OpEqualTo, specs.OpNotEqual, specs.OpGreaterThan, specs.OpGreaterEqual, specs.OpLessThan, specs.OpLessEqual} {
		out["wide "+string(op)] = allow(all, one(arg(1, op, big, 0)))
		out["narrow "+string(op)] = allow(all, one(arg(0, op, 2, 0)))
	}
	out["masked"] = allow(all, one(arg(1, specs.OpMaskedEqual, 0xf0000000f, 0x700000003)))
	out["masked low"] = allow(all, one(arg(1, specs.OpMaskedEqual, 0xff, 0x12)))
	out["masked beyond"] = allow(all, one(arg(1, specs.OpMaskedEqual, 0x0f, 0x1f)))
	return out
}
