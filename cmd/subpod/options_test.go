package main

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/client"
	"github.com/subpod/subpod/pkg/config"
)

func TestParsePort(t *testing.T) {
	for text, want := range map[string]*runtimeapi.PortMapping{
		"8080:80":           {HostPort: 8080, ContainerPort: 80},
		"8080:80/tcp":       {HostPort: 8080, ContainerPort: 80},
		"53:5353/udp":       {HostPort: 53, ContainerPort: 5353, Protocol: runtimeapi.Protocol_UDP},
		"127.0.0.1:8080:80": {HostIp: "127.0.0.1", HostPort: 8080, ContainerPort: 80},
		"[::1]:8080:80":     {HostIp: "::1", HostPort: 8080, ContainerPort: 80},
	} {
		got, err := parsePorts(text)
		if err != nil || len(got) != 1 || got[0].String() != want.String() {
			t.Errorf("%s: %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"80", "127.0.0.1::80", ":80/udp"} { // a free host port
		if got, err := parsePorts(text); err != nil || len(got) != 1 || got[0].HostPort == 0 || got[0].ContainerPort != 80 {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "0", "x", "70000", "80:0", "0:80", "a:80", "8080:80/sctp", "host:8080:80", "1.2.3:8080:80", "-1:80", "8080:80:tcp", "80-81:90", "81-80:81-80", "80-82:90-91"} {
		if got, err := parsePorts(text); !errors.Is(err, errUsage) {
			t.Errorf("%q: %v, %v; want errUsage", text, got, err)
		}
	}
}

// TestPortRange: ranges are mapped port by port.
func TestPortRange(t *testing.T) {
	got, err := parsePorts("127.0.0.1:8000-8002:80-82/udp")
	if err != nil || len(got) != 3 || got[2].HostPort != 8002 || got[2].ContainerPort != 82 || got[2].HostIp != "127.0.0.1" || got[2].Protocol != runtimeapi.Protocol_UDP {
		t.Errorf("%v, %v", got, err)
	}
}

func TestParseVolume(t *testing.T) {
	dir, here := t.TempDir(), t.TempDir()
	t.Chdir(here)
	for text, want := range map[string]*runtimeapi.Mount{
		here + ":/x":           {HostPath: here, ContainerPath: "/x"},
		".:/x":                 {HostPath: here, ContainerPath: "/x"},
		"./:/x:ro":             {HostPath: here, ContainerPath: "/x", Readonly: true},
		"data:/x":              {HostPath: filepath.Join(dir, "data"), ContainerPath: "/x"},
		here + ":/x:rw,rslave": {HostPath: here, ContainerPath: "/x", Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
		here + ":/x:shared,Z":  {HostPath: here, ContainerPath: "/x", Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL, SelinuxRelabel: true},
		here + ":/x:noexec":    {HostPath: here, ContainerPath: "/x", MountOptions: []string{"noexec"}},
	} {
		got, named, err := parseVolume(text, dir)
		if err != nil || got.String() != want.String() {
			t.Errorf("%s: %v, %v; want %v", text, got, err, want)
		}
		if (named != nil) != strings.HasPrefix(text, "data:") {
			t.Errorf("%s: named volume %v", text, named)
		}
	}
	for _, text := range []string{"", "/x", ":/x", "/a:b", "/a:/b:ro:rw", here + ":/x:nosuch", here + ":/x:U", "-data:/x", "a b:/x"} {
		if got, _, err := parseVolume(text, dir); !errors.Is(err, errUsage) {
			t.Errorf("%q: %v, %v; want errUsage", text, got, err)
		}
	}
	if _, _, err := parseVolume("/nosuch/dir:/x", dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a host path that does not exist: %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("the server makes volumes, and this made %v", left)
	}
}

// options returns the options that a command line gives.
func options(t *testing.T, args ...string) (*runOptions, []string) {
	t.Helper()
	o := &runOptions{}
	var rest []string
	cmd := &cobra.Command{Use: "run", RunE: func(_ *cobra.Command, args []string) error {
		rest = args
		return nil
	}}
	o.addFlags(cmd)
	cmd.SetArgs(args)
	if err := cmd.Execute(); err != nil {
		t.Fatal(err)
	}
	return o, rest
}

func TestCheck(t *testing.T) {
	for args, want := range map[string]string{
		"image":                         "",
		"--name a_b.c-1 image":          "",
		"--name -x image":               "--name",
		"--name a/b image":              "--name",
		"--pull sometimes image":        "--pull",
		"--network bridge image":        "",
		"--network a/b image":           "--network",
		"--network none -p 80 image":    "-p cannot be combined",
		"--cpus=-1 image":               "--cpus",
		"-d --ephemeral-node image":     "exclude each other",
		"--network host image -p x":     "", // flags of the command, not ours
		"-d -it image":                  "",
		"--rm -d --network none x -- y": "",
	} {
		o, _ := options(t, strings.Fields(args)...)
		err := o.check()
		if want == "" && err != nil || want != "" && (!errors.Is(err, errUsage) || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v; want %q", args, err, want)
		}
	}
}

// configsOf returns the configuration for a command line.
func configsOf(t *testing.T, args ...string) (*runtimeapi.PodSandboxConfig, *runtimeapi.ContainerConfig, error) {
	t.Helper()
	cfg := &config.Config{}
	cfg.Daemon.DataDir = t.TempDir()
	o, rest := options(t, args...)
	if o.name == "" {
		o.name = "web"
	}
	if err := o.networkOptions.check(); err != nil {
		return nil, nil, err
	}
	return o.configs(cfg, rest)
}

// TestNames checks that two runs with one name ask for the same pod sandbox, by its
// metadata, and for different ones by their configuration: that is how the server
// refuses the second one.
func TestNames(t *testing.T) {
	first, _, err := configsOf(t, "--name", "web", "image")
	if err != nil {
		t.Fatal(err)
	}
	second, _, err := configsOf(t, "--name", "web", "image")
	if err != nil {
		t.Fatal(err)
	}
	if first.Metadata.String() != second.Metadata.String() {
		t.Errorf("metadata: %v and %v", first.Metadata, second.Metadata)
	}
	if a, b := first.Annotations[api.AnnotationRunID], second.Annotations[api.AnnotationRunID]; a == "" || a == b {
		t.Errorf("run IDs: %q and %q", a, b)
	}
	if first.LogDirectory == second.LogDirectory || filepath.Dir(first.LogDirectory) == first.LogDirectory {
		t.Errorf("log directories: %q and %q", first.LogDirectory, second.LogDirectory)
	}
	other, _, err := configsOf(t, "--name", "db", "image")
	if err != nil || first.Metadata.String() == other.Metadata.String() {
		t.Errorf("another name: %v, %v", other.Metadata, err)
	}
}

func TestConfigs(t *testing.T) {
	pod, ctr, err := configsOf(t, "--rm", "-e", "A=1", "-l", "tier=front", "-l", "x", "-m", "64m", "--cpus", "1.5", "-w", "/src",
		"--entrypoint", "/bin/sh", "--hostname", "h", "--dns", "1.1.1.1", "--cap-add", "NET_RAW", "-u", "1000:8", "image", "-c", "true")
	if err != nil {
		t.Fatal(err)
	}
	if pod.Annotations[api.AnnotationWhenDone] != api.WhenDoneRemove || pod.LogDirectory != "" || pod.Hostname != "h" || pod.DnsConfig.Servers[0] != "1.1.1.1" {
		t.Errorf("pod: %v", pod)
	}
	if !slices.Equal(ctr.Command, []string{"/bin/sh"}) || !slices.Equal(ctr.Args, []string{"-c", "true"}) || ctr.WorkingDir != "/src" ||
		ctr.Labels["tier"] != "front" || string(ctr.Envs[0].Value) != "1" {
		t.Errorf("container: %v", ctr)
	}
	if r := ctr.Linux.Resources; r.MemoryLimitInBytes != 64<<20 || r.CpuQuota != 150_000 || r.CpuPeriod != 100_000 {
		t.Errorf("limits: %v", r)
	}
	sec := ctr.Linux.SecurityContext
	if sec.RunAsUser.Value != 1000 || sec.RunAsGroup.Value != 8 || sec.Capabilities.AddCapabilities[0] != "NET_RAW" || len(sec.MaskedPaths) == 0 {
		t.Errorf("security: %v", sec)
	}
	for _, args := range [][]string{
		{"-l", "=x", "image"}, {"-m", "lots", "image"}, {"-m", "0", "image"}, {"-e", "=x", "image"}, {"-e", "a b=x", "image"}, {"-u", "a:b:c", "image"}, {"-u", ":1", "image"},
	} {
		if _, _, err := configsOf(t, args...); !errors.Is(err, errUsage) {
			t.Errorf("%v: %v; want errUsage", args, err)
		}
	}
}

func TestEnvironment(t *testing.T) {
	t.Setenv("SUBPOD_TEST_SET", "from here")
	file := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(file, []byte("# comment\n\n A=1 \nB=x=y\nSUBPOD_TEST_SET\nSUBPOD_TEST_UNSET\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, ctr, err := configsOf(t, "--env-file", file, "-e", "C=", "-e", "SUBPOD_TEST_SET", "-e", "SUBPOD_TEST_UNSET", "image")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, kv := range ctr.Envs {
		got = append(got, kv.Key+"="+string(kv.Value))
	}
	if want := []string{"A=1 ", "B=x=y", "SUBPOD_TEST_SET=from here", "C=", "SUBPOD_TEST_SET=from here"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if _, _, err := configsOf(t, "--env-file", "/nosuch", "image"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that does not exist: %v", err)
	}
}

func TestSecurityOptions(t *testing.T) {
	profile := filepath.Join(t.TempDir(), "profile.json")
	if err := os.WriteFile(profile, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for opt, want := range map[string]string{
		"seccomp=unconfined":      "seccomp:{profile_type:Unconfined}",
		"seccomp=default":         "seccomp:{}",
		"seccomp=" + profile:      `seccomp:{profile_type:Localhost  localhost_ref:"` + profile + `"}`,
		"no-new-privileges":       "no_new_privs:true",
		"no-new-privileges=false": "",
		"no-new-privileges:true":  "no_new_privs:true",
	} {
		sec := &runtimeapi.LinuxContainerSecurityContext{}
		if err := securityOption(sec, opt); err != nil || strings.ReplaceAll(sec.String(), "  ", " ") != strings.ReplaceAll(want, "  ", " ") {
			t.Errorf("%s: %v, %v; want %s", opt, sec, err, want)
		}
	}
	for _, opt := range []string{"", "seccomp", "seccomp=", "label=type:x", "mask=", "unmask=x", "no-new-privileges=maybe"} {
		if err := securityOption(&runtimeapi.LinuxContainerSecurityContext{}, opt); !errors.Is(err, errUsage) {
			t.Errorf("%q: %v; want errUsage", opt, err)
		}
	}
	if err := securityOption(&runtimeapi.LinuxContainerSecurityContext{}, "seccomp=/nosuch"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a profile that does not exist: %v", err)
	}
	// The CRI has no field for the name of a group.
	_, ctr, err := configsOf(t, "-u", "www-data:staff", "image")
	if err != nil || ctr.Annotations[api.AnnotationUser] != "www-data:staff" || ctr.Linux.SecurityContext.RunAsUsername != "" {
		t.Errorf("a group by name: %v, %v", ctr, err)
	}
	_, ctr, err = configsOf(t, "--privileged", "--network", "none", "image")
	if sec := ctr.Linux.SecurityContext; err != nil || !sec.Privileged || sec.MaskedPaths != nil || sec.Seccomp.ProfileType != runtimeapi.SecurityProfile_Unconfined {
		t.Errorf("privileged: %v, %v", sec, err)
	}
}

// TestUnmaskCgroup: what of --security-opt makes the container's cgroup writable, as podman's.
func TestUnmaskCgroup(t *testing.T) {
	for opt, want := range map[string]string{
		"unmask=/proc/kcore:/sys/fs/cgroup": api.CgroupWritable,
		"unmask=/sys/fs/cgroup":             api.CgroupWritable,
		"unmask:/sys/fs/cgroup":             api.CgroupWritable,
		"unmask=/sys/fs/*":                  api.CgroupWritable,
		"unmask=ALL":                        "",
		"mask=/sys/fs/cgroup":               "",
	} {
		_, ctr, err := configsOf(t, "--security-opt", opt, "image")
		if err != nil || ctr.Annotations[api.AnnotationCgroup] != want {
			t.Errorf("%s: %v, %v", opt, ctr.GetAnnotations(), err)
		}
	}
}

// TestSysctls: several in one flag, and values with commas.
func TestSysctls(t *testing.T) {
	for _, args := range [][]string{
		{"--sysctl", "net.a=1,net.b=80,443,9000-9010", "--sysctl", "net.c=0 5"},
		{"--sysctl", "net.a=1", "--sysctl", "net.b=80,443,9000-9010", "--sysctl=net.c=0 5"},
	} {
		pod, _, err := configsOf(t, append(args, "image")...)
		if err != nil {
			t.Fatal(err)
		}
		if want := map[string]string{"net.a": "1", "net.b": "80,443,9000-9010", "net.c": "0 5"}; !maps.Equal(pod.Linux.Sysctls, want) {
			t.Errorf("%q: %v", args, pod.Linux.Sysctls)
		}
	}
	for _, bad := range []string{"net.a", "443,net.a=1", "=1"} {
		if _, _, err := configsOf(t, "--sysctl", bad, "image"); !errors.Is(err, errUsage) {
			t.Errorf("%q: %v; want errUsage", bad, err)
		}
	}
}

func TestNewName(t *testing.T) {
	for image, want := range map[string]string{
		"busybox": "busybox-", "quay.io/me/App_Server:v1": "app-server-", "host:5000/x@sha256:0123": "x-", "!!!": "container-",
		strings.Repeat("a", 100): strings.Repeat("a", 40) + "-",
	} {
		got := newName(image)
		if !strings.HasPrefix(got, want) || len(got) != len(want)+6 || !isName(got) {
			t.Errorf("%s: %s, want %sXXXXXX", image, got, want)
		}
	}
}

func TestExitCode(t *testing.T) {
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, 0}, {errors.New("x"), exitError}, {exitStatus(42), 42}, {usagef("x"), exitRun},
		{client.ErrNoDaemon, exitNoDaemon}, {client.ErrNotFound, exitNotFound}, {errors.Join(errors.New("x"), exitStatus(3)), 3},
	} {
		if got := exitCode(c.err); got != c.want {
			t.Errorf("%v: %d, want %d", c.err, got, c.want)
		}
	}
	if err := runCode(nil); err != nil {
		t.Errorf("runCode of no error: %v", err)
	}
}
