package seccompbpf

import (
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/subpod/subpod/tests/seccomp"
)

// TestUnknown: a call that is newer than all that the profile names does not exist, one
// that the profile denies, or does not name although it is older, is refused. On all three
// ABIs.
func TestUnknown(t *testing.T) {
	const eperm, enosys, x32 = retErrno | 1, retErrno | 38, x32Start
	const amd64, i386 = 0xc000003e, 0x40000003
	eacces := uint(13)
	profile := func(def specs.LinuxSeccompAction, archs ...specs.Arch) *specs.LinuxSeccomp {
		return &specs.LinuxSeccomp{DefaultAction: def, Architectures: archs, Syscalls: []specs.LinuxSyscall{
			{Names: []string{"read", "ioctl", "no_such_call"}, Action: specs.ActAllow},
			{Names: []string{"statx"}, Action: specs.ActErrno, ErrnoRet: &eacces}, // 332, on i386 383
		}}
	}
	all := []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32}
	denying, named := profile(specs.ActErrno, all...), profile(specs.ActErrno, all...)
	named.DefaultErrnoRet = &eacces
	for what, c := range map[string]struct {
		profile      *specs.LinuxSeccomp
		arch, number uint32
		want         uint32
	}{
		"allowed":                     {denying, amd64, 0, retAllow},
		"named and denied":            {denying, amd64, 332, retErrno | 13},
		"older":                       {denying, amd64, 165, eperm},
		"newer":                       {denying, amd64, 333, enosys},
		"a number of the future":      {denying, amd64, 5000, enosys},
		"the highest":                 {denying, amd64, x32 - 1, enosys},
		"a tracer's":                  {denying, amd64, ^uint32(0), eperm},
		"another default errno":       {named, amd64, 165, retErrno | 13},
		"another, newer":              {named, amd64, 435, enosys},
		"i386, allowed":               {denying, i386, 3, retAllow},
		"i386, older":                 {denying, i386, 382, eperm},
		"i386, newer":                 {denying, i386, 384, enosys},
		"i386, the highest":           {denying, i386, ^uint32(1), enosys},
		"x32, allowed":                {denying, amd64, x32, retAllow},
		"x32, allowed, of its own":    {denying, amd64, x32 | 514, retAllow},
		"x32, older":                  {denying, amd64, x32 | 165, eperm},
		"x32, newer":                  {denying, amd64, x32 | 333, enosys},
		"x32, of its own":             {denying, amd64, x32 | 521, eperm},
		"x32, newer than its own":     {denying, amd64, x32 | 548, enosys},
		"x32 is not in the profile":   {profile(specs.ActErrno), amd64, x32 | 333, retKillThread},
		"a tracer's, without x32":     {profile(specs.ActErrno), amd64, ^uint32(0), eperm},
		"newer, without x32":          {profile(specs.ActErrno), amd64, 333, enosys},
		"an architecture that is not": {profile(specs.ActErrno), i386, 384, retKillThread},
		"default kill, older":         {profile(specs.ActKillProcess), amd64, 165, retKillProcess},
		"default kill, newer":         {profile(specs.ActKillProcess), amd64, 333, enosys},
		"default trap, newer":         {profile(specs.ActTrap), amd64, 333, enosys},
		"default log, newer":          {profile(specs.ActLog), amd64, 333, retLog},
		"default allow, newer":        {profile(specs.ActAllow), amd64, 333, retAllow},
		"default trace, newer":        {profile(specs.ActTrace), amd64, 333, retTrace | 1},
		"no names":                    {&specs.LinuxSeccomp{DefaultAction: specs.ActErrno}, amd64, 333, eperm},
	} {
		program, err := Compile(c.profile)
		if err != nil {
			t.Fatal(err)
		}
		got, err := seccomp.Run(program, seccomp.Data{Number: c.number, Arch: c.arch})
		if err != nil || got != c.want {
			t.Errorf("%s: %#x, %v, want %#x", what, got, err, c.want)
		}
	}
}
