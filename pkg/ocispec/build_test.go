package ocispec

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/cgroup"
)

func TestInvalid(t *testing.T) {
	type change = func(in *Input)
	mount := func(m *runtimeapi.Mount) change {
		return func(in *Input) {
			if m.HostPath == "" {
				m.HostPath = in.Rootfs
			}
			in.Mounts = []*runtimeapi.Mount{m}
		}
	}
	res := func(r *runtimeapi.LinuxContainerResources) change {
		return func(in *Input) { in.Container.Linux.Resources = r }
	}
	seccomp := func(kind runtimeapi.SecurityProfile_ProfileType, ref string) change {
		return func(in *Input) {
			in.secctx().Seccomp = &runtimeapi.SecurityProfile{ProfileType: kind, LocalhostRef: ref}
		}
	}
	env := func(k, v string) change {
		return func(in *Input) { in.Container.Envs = []*runtimeapi.KeyValue{{Key: k, Value: []byte(v)}} }
	}
	for why, c := range map[string]change{
		"is missing":                func(in *Input) { in.Container = nil },
		"no command given":          func(in *Input) { in.Image.Entrypoint, in.Image.Cmd = nil, nil },
		"has a zero byte":           func(in *Input) { in.Container.Command = []string{"a\x00b"} },
		"is not UTF-8":              env("A", "\xff"),
		"environment variable name": env("A=B", ""),
		"unknown capability \"CAP_FOO\"": func(in *Input) {
			in.secctx().Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"CAP_FOO"}}
		},
		"outside of the user namespace": func(in *Input) { in.secctx().RunAsUser = id(70000) },
		"group ID 70000 is outside":     func(in *Input) { in.secctx().SupplementalGroups = []int64{70000} },
		"is not absolute":               mount(&runtimeapi.Mount{ContainerPath: "x"}),
		"cannot replace the root":       mount(&runtimeapi.Mount{ContainerPath: "/.."}),
		"does not exist":                mount(&runtimeapi.Mount{ContainerPath: "/x", HostPath: "/no/such"}),
		"recursive_read_only without":   mount(&runtimeapi.Mount{ContainerPath: "/x", RecursiveReadOnly: true}),
		"other than private":            mount(&runtimeapi.Mount{ContainerPath: "/x", RecursiveReadOnly: true, Readonly: true, Propagation: 1}),
		"unknown propagation":           mount(&runtimeapi.Mount{ContainerPath: "/x", Propagation: 9}),
		"mount option \"remount\"":      mount(&runtimeapi.Mount{ContainerPath: "/x", MountOptions: []string{"remount"}}),
		"need a pod with a user":        mount(&runtimeapi.Mount{ContainerPath: "/x", UidMappings: []*runtimeapi.IDMapping{{Length: 1}}}),
		"permissions": func(in *Input) {
			in.Container.Devices = []*runtimeapi.Device{{HostPath: "/dev/null", Permissions: "x"}}
		},
		"is not below": func(in *Input) {
			in.Host.DevRoot = "/dev"
			in.Container.Devices = []*runtimeapi.Device{{HostPath: "/", ContainerPath: "/x"}}
		},
		"is not a regular file": func(in *Input) {
			fifo := filepath.Join(in.Rootfs, "fifo")
			must(t, syscall.Mkfifo(fifo, 0o600))
			seccomp(2, fifo)(in)
		},
		"not an absolute path": seccomp(2, "relative.json"),
		"no such file":         seccomp(2, "/no/such.json"),
		"with a localhost_ref": seccomp(0, "/x"),
		"seccomp profile type": seccomp(9, ""),
		//lint:ignore SA1019 deprecated, but older clients send it
		"unknown security profile": func(in *Input) { in.secctx().Seccomp, in.secctx().SeccompProfilePath = nil, "what" },
		"this kernel has no AppArmor": func(in *Input) {
			in.secctx().Apparmor = &runtimeapi.SecurityProfile{ProfileType: 2, LocalhostRef: "mine"}
		},
		"masked or read-only path": func(in *Input) { in.secctx().MaskedPaths = []string{"proc"} },
		"unified key":              res(&runtimeapi.LinuxContainerResources{Unified: map[string]string{"memory/../x": "1"}}),
		"unified key \"cgroup":     res(&runtimeapi.LinuxContainerResources{Unified: map[string]string{"cgroup.procs": "1"}}),
		"without nsdelegate":       func(in *Input) { in.WritableCgroup = true },
		"have no cgroups: why": func(in *Input) {
			in.WritableCgroup, in.Host.Cgroup = true, cgroup.Delegation{Driver: cgroup.DriverDisabled, Bounded: true, Reason: "why"}
		},
		"huge page size":         res(&runtimeapi.LinuxContainerResources{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "../2MB"}}}),
		"negative":               res(&runtimeapi.LinuxContainerResources{CpuShares: -1}),
		"less than the memory":   res(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 10, MemorySwapLimitInBytes: 5}),
		"oom_score_adj":          res(&runtimeapi.LinuxContainerResources{OomScoreAdj: 2000}),
		"have no mappings":       func(in *Input) { in.Namespaces.User = "/pins/user"; in.Image.User = "0" },
		"unknown resource limit": func(in *Input) { in.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_X"}} },
	} {
		t.Run(why, func(t *testing.T) {
			in := goldenInput(t)
			c(&in)
			wantInvalid(t, in, why)
		})
	}
}

func TestArgs(t *testing.T) {
	image := v1.ImageConfig{Entrypoint: []string{"e"}, Cmd: []string{"c"}}
	for _, c := range []struct {
		command, args []string
		want          string
	}{
		{nil, nil, "e c"}, {nil, []string{"a"}, "e a"}, {[]string{"x"}, nil, "x"}, {[]string{"x"}, []string{"a"}, "x a"},
	} {
		in := goldenInput(t)
		in.Image.Entrypoint, in.Image.Cmd = image.Entrypoint, image.Cmd
		in.Container.Command, in.Container.Args = c.command, c.args
		out, err := Build(in)
		must(t, err)
		if got := strings.Join(out.Spec.Process.Args, " "); got != c.want {
			t.Errorf("command %v args %v: %q, want %q", c.command, c.args, got, c.want)
		}
	}
}

func TestStopSignal(t *testing.T) {
	for value := range runtimeapi.Signal_name {
		in := goldenInput(t)
		in.Image.StopSignal = "SIGUSR2"
		in.Container.StopSignal = runtimeapi.Signal(value)
		out, err := Build(in)
		if err != nil || out.StopSignal < 1 || out.StopSignal > 64 {
			t.Errorf("%s: %d, %v", runtimeapi.Signal(value), out.StopSignal, err)
		}
	}
	for name, want := range map[string]syscall.Signal{
		"SIGTERM": 15, "term": 15, "9": 9, "SIGRTMIN": 34, "SIGRTMIN+3": 37, "RTMAX-1": 63, "SIGRTMAX": 64, "SIGPOLL": 29, "SIGCLD": 17, "SIGIOT": 6,
	} {
		if got, ok := ParseSignal(name); !ok || got != want {
			t.Errorf("%s: %d %t, want %d", name, got, ok, want)
		}
	}
	for _, name := range []string{"", "0", "65", "-1", "SIGRTMIN+31", "SIGRTMIN3", "SIGNOPE", "SIGRTMAX+1"} {
		if got, ok := ParseSignal(name); ok {
			t.Errorf("%q is signal %d", name, got)
		}
	}
	in := goldenInput(t)
	in.Image.StopSignal = "nonsense"
	out, err := Build(in)
	must(t, err)
	if out.StopSignal != syscall.SIGTERM || !slices.ContainsFunc(out.Warnings, func(w string) bool { return strings.Contains(w, "nonsense") }) {
		t.Errorf("signal %d, warnings %q", out.StopSignal, out.Warnings)
	}
}

// TestResources: with all controllers every limit is there; without, each is named.
func TestResources(t *testing.T) {
	r := &runtimeapi.LinuxContainerResources{
		CpuPeriod: 100000, CpuQuota: -1, CpuShares: 2, MemoryLimitInBytes: 100, MemorySwapLimitInBytes: 150, CpusetCpus: "0", CpusetMems: "0",
		HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 0}, {PageSize: "1GB", Limit: 5}},
		Unified:        map[string]string{"pids.max": "10", "memory.low": "1"},
	}
	all := cgroup.Delegation{Version: 2, Driver: cgroup.DriverCgroupfs, Swap: true, Controllers: strings.Fields("cpu cpuset memory pids hugetlb")}
	out, warnings, err := Resources(r, all)
	must(t, err)
	if len(warnings) != 0 || *out.Memory.Limit != 100 || *out.Memory.Swap != 150 || *out.CPU.Quota != -1 || *out.CPU.Shares != 2 ||
		out.CPU.Cpus != "0" || out.CPU.Mems != "0" || len(out.HugepageLimits) != 2 || out.Unified["pids.max"] != "10" {
		b, _ := json.Marshal(out)
		t.Errorf("%s %q", b, warnings)
	}
	out, warnings, err = Resources(r, cgroup.Delegation{Driver: cgroup.DriverDisabled})
	must(t, err)
	if !reflect.DeepEqual(out, &specs.LinuxResources{}) {
		t.Errorf("limits without cgroups: %+v", out)
	}
	for _, word := range []string{"cpu_period", "cpu_quota", "cpu_shares", "memory_limit", "memory_swap", "cpuset_cpus", "2MB", "1GB", "pids.max", "memory.low"} {
		if !strings.Contains(strings.Join(warnings, "\n"), word) {
			t.Errorf("%s is not named in %q", word, warnings)
		}
	}
	all.Swap = false
	out, warnings, err = Resources(r, all)
	must(t, err)
	if out.Memory.Swap != nil || len(warnings) != 1 {
		t.Errorf("swap %v, %q", out.Memory.Swap, warnings)
	}
}

// TestExecProcess runs an exec into a real container.
func TestExecProcess(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	step := tempDir(t)
	in := testInput(t, "touch /step/ready; sleep 60")
	must(t, os.Chmod(step, 0o777))
	in.Mounts = []*runtimeapi.Mount{{ContainerPath: "/step", HostPath: step}}
	in.secctx().RunAsUser = id(1000)
	in.secctx().NoNewPrivs = true
	in.secctx().Seccomp = &runtimeapi.SecurityProfile{}
	out, err := Build(in)
	must(t, err)
	before, err := json.Marshal(out.Spec)
	must(t, err)
	p := ExecProcess(out.Spec, []string{"/bin/sh", "-c", "cat /proc/self/status; env"}, true)
	if !p.Terminal || !slices.Contains(p.Env, "TERM=xterm") {
		t.Errorf("terminal %t, environment %v", p.Terminal, p.Env)
	}
	p = ExecProcess(out.Spec, p.Args, false)
	p.Env = append(p.Env, "X=1")
	p.User.AdditionalGids[0] = 77
	after, err := json.Marshal(out.Spec)
	must(t, err)
	if string(before) != string(after) {
		t.Error("the container's own specification was changed")
	}
	p.User.AdditionalGids[0] = 1000

	cmd := runtimeCommand(t, "crun", out, true, "run", "test")
	must(t, cmd.Start())
	defer func() { _ = cmd.Wait() }()
	root := filepath.Join(cmd.Dir, "state")
	defer func() {
		_ = exec.Command("crun", "--root", root, "--cgroup-manager=disabled", "kill", "test", "KILL").Run()
	}()
	waitFile(t, filepath.Join(step, "ready"))
	b, err := json.Marshal(p)
	must(t, err)
	file := filepath.Join(cmd.Dir, "process.json")
	must(t, os.WriteFile(file, b, 0o644))
	text, err := exec.Command("crun", "--root", root, "--cgroup-manager=disabled", "exec", "-p", file, "test").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	for field, want := range map[string]string{"Uid": "1000 1000 1000 1000", "Groups": "1000 50000 50001", "NoNewPrivs": "1", "Seccomp": "2", "CapEff": capHex(0)} {
		if got := statusField(string(text), field); got != want {
			t.Errorf("%s is %q, want %q", field, got, want)
		}
	}
	wantAll(t, string(text), "X=1")
}

// FuzzBuild gives Build any request: it must answer or refuse, never panic, and a
// specification that it makes must keep the rules that others rely on.
func FuzzBuild(f *testing.F) {
	seed := &runtimeapi.ContainerConfig{
		Command: []string{"x"}, Envs: []*runtimeapi.KeyValue{{Key: "A", Value: []byte("b")}},
		Mounts:  []*runtimeapi.Mount{{ContainerPath: "/x", HostPath: "/", Readonly: true, MountOptions: []string{"noexec"}}},
		Devices: []*runtimeapi.Device{{HostPath: "/dev/null", ContainerPath: "/dev/x", Permissions: "rw"}},
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources: &runtimeapi.LinuxContainerResources{Unified: map[string]string{"memory.low": "1"}, HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB"}}},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				Capabilities: &runtimeapi.Capability{AddCapabilities: []string{"ALL"}, AddAmbientCapabilities: []string{"chown"}},
				RunAsUser:    id(3), RunAsGroup: id(4), SupplementalGroups: []int64{5}, Seccomp: &runtimeapi.SecurityProfile{},
				MaskedPaths: []string{"/proc/kcore"}, SelinuxOptions: &runtimeapi.SELinuxOption{Type: "t"},
			},
		},
		StopSignal: runtimeapi.Signal_SIGNAL_SIGRTMAXMINUS3,
	}
	b, err := proto.Marshal(seed)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b, []byte{}, "www-data:1004", "SIGTERM", "root:x:0:0::/:\n", byte(0))
	f.Add([]byte{}, []byte{}, "0:0", "SIGRTMIN+3", testPasswd, byte(255))
	root := f.TempDir()
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		f.Fatal(err)
	}
	host := goldenHost()
	f.Fuzz(func(t *testing.T, container, pod []byte, user, signal, accounts string, bits byte) {
		in := Input{Rootfs: root, Host: host, Container: &runtimeapi.ContainerConfig{}, Pod: &runtimeapi.PodSandboxConfig{}}
		if proto.Unmarshal(container, in.Container) != nil || proto.Unmarshal(pod, in.Pod) != nil {
			return
		}
		for _, name := range []string{"passwd", "group"} {
			must(t, os.WriteFile(filepath.Join(root, "etc", name), []byte(accounts), 0o644))
		}
		in.Mounts = in.Container.Mounts
		in.Image = v1.ImageConfig{User: user, StopSignal: signal, Cmd: []string{"run"}, WorkingDir: signal, Env: []string{user}, Volumes: map[string]struct{}{user: {}}}
		if bits&1 != 0 {
			in.Host.Cgroup = cgroup.Delegation{}
		}
		if bits&2 != 0 {
			in.Namespaces.User = "/pins/user"
		}
		out, err := Build(in)
		if err == nil {
			checkSpec(t, in, out)
		}
	})
}

func checkSpec(t *testing.T, in Input, out Output) {
	t.Helper()
	s := out.Spec
	if s.Root.Path != in.Rootfs || len(s.Process.Args) == 0 || !filepath.IsAbs(s.Process.Cwd) || out.StopSignal < 1 || out.StopSignal > 64 {
		t.Errorf("root %q, args %q, directory %q, signal %d", s.Root.Path, s.Process.Args, s.Process.Cwd, out.StopSignal)
	}
	for _, m := range s.Mounts {
		if !filepath.IsAbs(m.Destination) || filepath.Clean(m.Destination) != m.Destination || m.Destination == "/" {
			t.Errorf("mount on %q", m.Destination)
		}
	}
	if len(s.Linux.Devices) != 0 || s.Hooks != nil && len(in.CDISpecDirs) == 0 {
		t.Error("devices to make, or hooks, came out of nothing")
	}
	for _, e := range s.Process.Env {
		if strings.ContainsRune(e, 0) || !strings.Contains(e, "=") {
			t.Errorf("environment %q", e)
		}
	}
	for key := range s.Annotations {
		if !strings.HasPrefix(key, "io.kubernetes.cri.") {
			t.Errorf("annotation %q", key)
		}
	}
	b, err := json.Marshal(s)
	must(t, err)
	var again specs.Spec
	must(t, json.Unmarshal(b, &again))
}
