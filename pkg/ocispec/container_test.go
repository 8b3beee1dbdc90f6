package ocispec

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

type secContext = runtimeapi.LinuxContainerSecurityContext

func id(n int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: n} }

func capHex(s capSet) string { return fmt.Sprintf("%016x", uint64(s)) }

// statusField picks a line of /proc/self/status out of a container's output.
func statusField(text, name string) string {
	m := regexp.MustCompile(`(?m)^` + name + `:[ \t]*(.*?)[ \t]*$`).FindStringSubmatch(text)
	if m == nil {
		return ""
	}
	return strings.Join(strings.Fields(m[1]), " ")
}

// TestStatus checks /proc/self/status inside of real containers.
func TestStatus(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	have := setOf(testHost(t).Bounding)
	def := setOf(defaultCaps) & have
	net := setOf([]string{"CAP_NET_ADMIN"})
	for _, c := range []struct {
		name string
		set  func(*secContext)
		want map[string]string
	}{
		{"default", func(s *secContext) {}, map[string]string{
			"CapEff": capHex(def), "CapPrm": capHex(def), "CapBnd": capHex(def), "CapInh": capHex(0), "CapAmb": capHex(0),
			"NoNewPrivs": "0", "Seccomp": "0", "Uid": "0 0 0 0", "Gid": "0 0 0 0", "Groups": "0",
		}},
		{"drop all, add one", func(s *secContext) {
			s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"net_admin"}, DropCapabilities: []string{"ALL"}}
		}, map[string]string{"CapEff": capHex(net), "CapBnd": capHex(net), "CapInh": capHex(0)}},
		{"add all, drop one", func(s *secContext) {
			s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"all"}, DropCapabilities: []string{"CAP_NET_ADMIN"}}
		}, map[string]string{"CapEff": capHex(have &^ net), "CapBnd": capHex(have &^ net)}},
		{"ambient for a user", func(s *secContext) {
			s.RunAsUser = id(1000)
			s.Capabilities = &runtimeapi.Capability{AddAmbientCapabilities: []string{"NET_ADMIN"}, DropCapabilities: []string{"ALL"}}
		}, map[string]string{"CapEff": capHex(net), "CapInh": capHex(net), "CapAmb": capHex(net), "CapBnd": capHex(net)}},
		{"a user has none", func(s *secContext) { s.RunAsUser, s.NoNewPrivs = id(1000), true }, map[string]string{
			"CapEff": capHex(0), "CapPrm": capHex(0), "CapBnd": capHex(def), "NoNewPrivs": "1",
			"Uid": "1000 1000 1000 1000", "Gid": "1000 1000 1000 1000", "Groups": "1000 50000 50001",
		}},
		{"strict groups", func(s *secContext) {
			s.RunAsUser, s.RunAsGroup, s.SupplementalGroups, s.SupplementalGroupsPolicy = id(1000), id(7), []int64{1234}, 1
		}, map[string]string{"Gid": "7 7 7 7", "Groups": "7 1234"}},
		{"merged groups", func(s *secContext) {
			s.RunAsUsername, s.RunAsGroup, s.SupplementalGroups = "www-data", id(8), []int64{1234}
		}, map[string]string{"Uid": "33 33 33 33", "Gid": "8 8 8 8", "Groups": "8 1234 50001"}},
		{"seccomp", func(s *secContext) { s.Seccomp = &runtimeapi.SecurityProfile{} }, map[string]string{"Seccomp": "2", "Seccomp_filters": "1"}},
		{"privileged", func(s *secContext) {
			s.Privileged = true
			s.Seccomp = &runtimeapi.SecurityProfile{}
			s.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}}
		}, map[string]string{"CapEff": capHex(have), "CapBnd": capHex(have), "Seccomp": "0"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := testInput(t, "cat /proc/self/status")
			c.set(in.secctx())
			text, _ := runContainer(t, in)
			for field, want := range c.want {
				if got := statusField(text, field); got != want {
					t.Errorf("%s is %q, want %q", field, got, want)
				}
			}
		})
	}
}

// TestEnvironment checks what the process is given.
func TestEnvironment(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	in := testInput(t, "env; pwd; cat /proc/self/oom_score_adj; cat /proc/self/limits")
	in.Image.Env = []string{"FROM_IMAGE=1", "BOTH=image", "PATH=/bin"}
	in.Image.WorkingDir = "/made/for/it"
	in.Container.Envs = []*runtimeapi.KeyValue{{Key: "BOTH", Value: []byte("a=b c\n\"é")}, {Key: "EMPTY"}}
	in.Container.Linux.Resources = &runtimeapi.LinuxContainerResources{OomScoreAdj: -997}
	text, out := runContainer(t, in)
	for _, want := range []string{"FROM_IMAGE=1\n", "BOTH=a=b c\n\"é\n", "EMPTY=\n", "PATH=/bin\n", "HOSTNAME=pod-host\n",
		"\n/made/for/it\n", fmt.Sprintf("\n%d\n", in.Host.OOMScoreAdj+oomMargin)} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in:\n%s", want, text)
		}
	}
	if len(out.Warnings) != 1 || !strings.Contains(out.Warnings[0], "oom_score_adj") {
		t.Errorf("warnings: %q", out.Warnings)
	}
	in = testInput(t, "cat /proc/self/oom_score_adj")
	in.Container.Linux.Resources = &runtimeapi.LinuxContainerResources{OomScoreAdj: 987}
	if text, _ := runContainer(t, in); strings.TrimSpace(text) != "987" {
		t.Errorf("oom_score_adj is %q", text)
	}
}

// TestPaths checks masked, read-only and writable paths, and a read-only root.
func TestPaths(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	try := "t() { if touch $1/x 2>/dev/null; then echo $1 rw; else echo $1 ro; fi; }; "
	script := try + `t /tmp; t /data; t /dev/shm; t /proc/sys; ls -A /data | head -1; cat /etc/group | head -1; grep -c . /proc/mounts >/dev/null
		grep " /sys sysfs" /proc/mounts; grep -E " /proc/sys " /proc/mounts | head -1`
	t.Run("plain", func(t *testing.T) {
		in := testInput(t, script)
		text, _ := runContainer(t, in)
		wantAll(t, text, "/tmp rw", "/data rw", "/dev/shm rw", " /sys sysfs ro,", "root:x:0:")
	})
	t.Run("read-only root, masked and read-only paths", func(t *testing.T) {
		in := testInput(t, script)
		must(t, os.WriteFile(filepath.Join(in.Rootfs, "data/secret"), nil, 0o644))
		s := in.secctx()
		s.ReadonlyRootfs = true
		s.MaskedPaths = []string{"/data", "/etc/group", "/not/there"}
		s.ReadonlyPaths = []string{"/proc/sys", "/not/there"}
		text, _ := runContainer(t, in)
		wantAll(t, text, "/tmp ro", "/data ro", "/dev/shm rw", "proc /proc/sys proc ro,")
		wantNone(t, text, "secret", "root:x:0:")
	})
	t.Run("privileged", func(t *testing.T) {
		in := testInput(t, script+"; ls /dev/fuse; dd if=/dev/fuse bs=1 count=0 2>&1 | head -1")
		s := in.secctx()
		s.Privileged = true
		s.MaskedPaths = []string{"/etc/group"}
		text, _ := runContainer(t, in)
		wantAll(t, text, " /sys sysfs rw,", "root:x:0:", "/dev/fuse", "0+0 records in")
	})
	t.Run("no network namespace of our own", func(t *testing.T) {
		in := testInput(t, "grep ' /sys ' /proc/mounts; ls /sys/class/net; touch /sys/x 2>&1; true")
		in.Namespaces.Net = ""
		text, _ := runContainer(t, in)
		wantAll(t, text, " /sys sysfs ro,", "Read-only file system")
	})
	t.Run("the node's PID namespace", func(t *testing.T) {
		in := testInput(t, "cat /proc/1/cmdline; readlink /proc/self/ns/pid")
		in.Namespaces.PID = PIDNode
		text, _ := runContainer(t, in)
		link, err := os.Readlink("/proc/self/ns/pid")
		must(t, err)
		wantAll(t, text, "-test.run", link)
	})
}

func wantAll(t *testing.T, text string, wants ...string) {
	t.Helper()
	for _, w := range wants {
		if !strings.Contains(text, w) {
			t.Errorf("%q is missing in:\n%s", w, text)
		}
	}
}

func wantNone(t *testing.T, text string, unwanted ...string) {
	t.Helper()
	for _, w := range unwanted {
		if strings.Contains(text, w) {
			t.Errorf("%q should not be in:\n%s", w, text)
		}
	}
}

// TestRunc runs a specification with everything that is special to us with the
// second runtime.
func TestRunc(t *testing.T) {
	if os.Getenv(nsMarker) == "" {
		t.Setenv("SUBPOD_TEST_KEEP_CGROUP", "1") // runc fails on the tmpfs that crun wants
	}
	if !inNamespace(t) {
		return
	}
	in := testInput(t, "cat /proc/self/status; grep ' /vol ' /proc/mounts; ls -l /dev/myfuse")
	vol := tempDir(t)
	in.Mounts = []*runtimeapi.Mount{{ContainerPath: "/vol", HostPath: vol, Readonly: true, RecursiveReadOnly: true}}
	in.Container.Devices = []*runtimeapi.Device{{HostPath: "/dev/fuse", ContainerPath: "/dev/myfuse", Permissions: "rw"}}
	s := in.secctx()
	s.RunAsUser = id(1000)
	s.Seccomp = &runtimeapi.SecurityProfile{}
	s.Capabilities = &runtimeapi.Capability{AddAmbientCapabilities: []string{"NET_ADMIN"}}
	s.MaskedPaths, s.ReadonlyPaths = DefaultMaskedPaths, DefaultReadonlyPaths
	out, err := Build(in)
	must(t, err)
	text, err := runSpec(t, "runc", out, false)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if got := statusField(text, "CapAmb"); got != capHex(setOf([]string{"CAP_NET_ADMIN"})) {
		t.Errorf("CapAmb %q", got)
	}
	if got := statusField(text, "Seccomp"); got != "2" {
		t.Errorf("Seccomp %q", got)
	}
	wantAll(t, text, " /vol ", " ro,", "10, 229")
}
