package ocispec

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const callsMarker = "SUBPOD_TEST_SYSCALLS_DIR"

// buildCalls builds testdata/syscalls for both architectures before the test
// enters its namespace, where the Go cache cannot be read.
func buildCalls(t *testing.T) {
	t.Helper()
	if os.Getenv(nsMarker) == "1" {
		return
	}
	dir := tempDir(t)
	for _, arch := range []string{"amd64", "386"} {
		cmd := exec.Command("go", "build", "-o", filepath.Join(dir, arch), "./testdata/syscalls")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+arch)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build: %v\n%s", err, out)
		}
	}
	t.Setenv(callsMarker, dir)
}

// callsInput is a container that makes the calls as a program of arch.
func callsInput(t *testing.T, arch string) Input {
	t.Helper()
	in := testInput(t, "")
	b, err := os.ReadFile(filepath.Join(os.Getenv(callsMarker), arch))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(in.Rootfs, "bin/calls"), b, 0o755))
	in.Container.Command = []string{"/bin/calls"}
	return in
}

func parseCalls(t *testing.T, text string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for line := range strings.Lines(text) {
		if name, errno, ok := strings.Cut(strings.TrimSpace(line), ": "); ok {
			out[name] = errno
		}
	}
	if len(out) < 16 {
		t.Fatalf("the program did not finish:\n%s", text)
	}
	return out
}

// TestSeccompInContainer runs the default profile for real, compiled by us and by
// the runtime, for a 64-bit and a 32-bit program.
func TestSeccompInContainer(t *testing.T) {
	buildCalls(t)
	if !inNamespace(t) {
		return
	}
	const ok, eperm, enosys = "0", "1", "38"
	want := map[string]string{
		"personality 0": ok, "personality query": ok, "personality UNAME26": ok, "personality back": ok,
		"personality NO_RANDOMIZE": eperm, "clone NEWUSER": eperm, "unshare NEWUSER": eperm, "keyctl": eperm,
		"clone3": enosys, "socket AF_UNIX": ok, "socket AF_ALG": eperm, "socket AF_VSOCK": eperm,
		"socket AF_AX25": eperm, "socket AF_APPLETALK": eperm, "socket AF_CAIF": eperm,
		"mount": eperm, "getpid": ok, "mkdir": "14",
	}
	for _, arch := range []string{"amd64", "386"} {
		for _, compiled := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s compiled=%t", arch, compiled), func(t *testing.T) {
				in := callsInput(t, arch)
				in.secctx().Seccomp = &runtimeapi.SecurityProfile{}
				out, err := Build(in)
				must(t, err)
				if out.SeccompBPF == "" {
					t.Fatal("the default profile was not compiled")
				}
				text, err := runSpec(t, "crun", out, compiled)
				if err != nil {
					t.Fatalf("%v\n%s", err, text)
				}
				got := parseCalls(t, text)
				// crun with libseccomp has the default action for what the profile does not know.
				want["unknown"] = map[bool]string{true: enosys, false: eperm}[compiled]
				for name, errno := range want {
					if got[name] != errno {
						t.Errorf("%s: errno %s, want %s", name, got[name], errno)
					}
				}
				if arch == "amd64" && got["x32 keyctl"] != eperm {
					t.Errorf("x32 keyctl: errno %s, want %s", got["x32 keyctl"], eperm)
				}
			})
		}
	}
}

// TestSeccompUnconfined is the control: the same calls without a profile, and with
// one for a privileged container, which has none.
func TestSeccompUnconfined(t *testing.T) {
	buildCalls(t)
	if !inNamespace(t) {
		return
	}
	for name, set := range map[string]func(*runtimeapi.LinuxContainerSecurityContext){
		"none": func(s *runtimeapi.LinuxContainerSecurityContext) {},
		"unconfined": func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: 1}
		},
		"privileged": func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.Privileged, s.Seccomp = true, &runtimeapi.SecurityProfile{}
		},
	} {
		t.Run(name, func(t *testing.T) {
			in := callsInput(t, "amd64")
			set(in.secctx())
			text, _ := runContainer(t, in)
			got := parseCalls(t, text)
			if got["personality NO_RANDOMIZE"] != "0" || got["clone3"] == "38" || got["unknown"] != "38" {
				t.Errorf("a filter is active:\n%s", text)
			}
		})
	}
}

// TestSeccompLocalhost loads a profile file with an errno of its own, for one call
// and with a condition. It names x32: without, an x32 call kills the thread.
func TestSeccompLocalhost(t *testing.T) {
	buildCalls(t)
	if !inNamespace(t) {
		return
	}
	file := filepath.Join(tempDir(t), "profile.json")
	must(t, os.WriteFile(file, []byte(`{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86","SCMP_ARCH_X32"],
		"syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_ERRNO","errnoRet":18},
		{"names":["personality"],"action":"SCMP_ACT_ERRNO","errnoRet":19,"args":[{"index":0,"value":131072,"op":"SCMP_CMP_EQ"}]}]}`), 0o644))
	for _, deprecated := range []bool{false, true} {
		in := callsInput(t, "amd64")
		if deprecated {
			//lint:ignore SA1019 deprecated, but older clients send it
			in.secctx().SeccompProfilePath = "localhost/" + file
		} else {
			in.secctx().Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: file}
		}
		text, _ := runContainer(t, in)
		got := parseCalls(t, text)
		if got["mkdir"] != "18" || got["personality UNAME26"] != "19" || got["personality 0"] != "0" {
			t.Errorf("deprecated=%t:\n%s", deprecated, text)
		}
	}
}
