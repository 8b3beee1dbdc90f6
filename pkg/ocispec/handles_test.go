package ocispec

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestHandles: open_by_handle_at is for privileged containers alone, whatever profile
// and capabilities others ask for.
func TestHandles(t *testing.T) {
	dir := t.TempDir()
	local := func(name, text string) *runtimeapi.SecurityProfile {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: path}
	}
	unconfined := &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
	for _, c := range []struct {
		name       string
		seccomp    *runtimeapi.SecurityProfile
		caps       []string
		privileged bool
		want       string // "none": no filter; "refused"
	}{
		{"default", &runtimeapi.SecurityProfile{}, nil, false, "refused"},
		{"default, by capability", &runtimeapi.SecurityProfile{}, []string{"DAC_READ_SEARCH", "SYS_ADMIN"}, false, "refused"},
		{"default, all", &runtimeapi.SecurityProfile{}, []string{"ALL"}, false, "refused"},
		{"unconfined", unconfined, nil, false, "none"},
		{"unconfined, another capability", unconfined, []string{"NET_ADMIN"}, false, "none"},
		{"unconfined, SYS_PTRACE", unconfined, []string{"SYS_PTRACE"}, false, "refused"},
		{"unconfined, SYS_ADMIN", unconfined, []string{"SYS_ADMIN"}, false, "refused"},
		{"unconfined, DAC_READ_SEARCH", unconfined, []string{"DAC_READ_SEARCH"}, false, "refused"},
		{"none", nil, []string{"ALL"}, false, "refused"},
		{"that allows it", local("allows", `{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read","open_by_handle_at"],"action":"SCMP_ACT_ALLOW"},{"names":["open_by_handle_at"],"action":"SCMP_ACT_LOG"}]}`), []string{"ALL"}, false, "refused"},
		{"that allows by default", local("deny-list", `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["ptrace"],"action":"SCMP_ACT_ERRNO"}]}`), []string{"ALL"}, false, "refused"},
		{"that logs", local("logs", `{"defaultAction":"SCMP_ACT_LOG"}`), nil, false, "refused"},
		{"empty", local("empty", `{}`), []string{"ALL"}, false, "refused"},
		{"empty, as it comes", local("empty", `{}`), nil, false, "none"},
		{"privileged", &runtimeapi.SecurityProfile{}, nil, true, "none"},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := testInput(t, "true")
			in.Host.Seccomp, in.Host.Bounding = true, capNames
			sec := in.secctx()
			sec.Seccomp, sec.Privileged, sec.Capabilities = c.seccomp, c.privileged, &runtimeapi.Capability{AddCapabilities: c.caps}
			out, err := Build(in)
			if err != nil {
				t.Fatal(err)
			}
			if got := handleAction(out.Spec.Linux.Seccomp); got != c.want {
				t.Errorf("%s: open_by_handle_at %s, want %s: %+v", c.name, got, c.want, out.Spec.Linux.Seccomp)
			}
			for _, pid := range []runtimeapi.NamespaceMode{runtimeapi.NamespaceMode_CONTAINER, runtimeapi.NamespaceMode_POD} {
				sec.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: pid}
				if got, want := Confined(sec), c.want == "refused"; got != want && c.name != "empty, as it comes" {
					t.Errorf("confined with PID mode %v: %v, want %v", pid, got, want)
				}
			}
		})
	}
}

func handleAction(p *specs.LinuxSeccomp) string {
	if p == nil {
		return "none"
	}
	action := p.DefaultAction
	for _, r := range p.Syscalls {
		if slices.Contains(r.Names, handleCall) {
			action = r.Action
		}
		if len(r.Names) == 0 {
			return "a rule without a name"
		}
	}
	if action == specs.ActErrno {
		return "refused"
	}
	return string(action)
}
