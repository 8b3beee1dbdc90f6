package ocispec

import (
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// adjustable is a container that adjustments are tried on.
func adjustable() Input {
	return Input{
		PodID: "p", ID: "c", Pod: &runtimeapi.PodSandboxConfig{}, Rootfs: "/tmp",
		Container: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Command: []string{"a"},
			Envs:  []*runtimeapi.KeyValue{{Key: "ASKED", Value: []byte("1")}, {Key: "KEPT", Value: []byte("1")}},
			Linux: &runtimeapi.LinuxContainerConfig{Resources: &runtimeapi.LinuxContainerResources{OomScoreAdj: 5}},
		},
		Mounts: []*runtimeapi.Mount{{ContainerPath: "/data", HostPath: "/usr"}},
		Host:   Host{HardLimits: map[string]uint64{"RLIMIT_NOFILE": 100}},
	}
}

// TestAdjust: an adjustment changes what the request has asked for, and not the request.
func TestAdjust(t *testing.T) {
	in := adjustable()
	score := int64(300)
	in.Adjust = &Adjustment{
		Env: []*runtimeapi.KeyValue{{Key: "NEW", Value: []byte("2")}}, UnsetEnv: []string{"ASKED"}, Args: []string{"b", "c"},
		Mounts: []*runtimeapi.Mount{{ContainerPath: "/data/", HostPath: "/etc"}}, RemoveMounts: []string{"/dev/shm"},
		OOMScoreAdj: &score, Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 50, Soft: 50}},
		Annotations: map[string]string{"k": "v"}, RemoveAnnotations: []string{"io.kubernetes.cri.container-name"},
		Hooks:   &specs.Hooks{Poststop: []specs.Hook{{Path: "/bin/true"}}},
		Seccomp: &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"reboot"}, Action: specs.ActErrno}}},
	}
	out, err := Build(in)
	if err != nil {
		t.Fatal(err)
	}
	s := out.Spec
	if !slices.Equal(s.Process.Args, []string{"b", "c"}) || !slices.Contains(s.Process.Env, "NEW=2") || !slices.Contains(s.Process.Env, "KEPT=1") || slices.Contains(s.Process.Env, "ASKED=1") {
		t.Errorf("process: %v, %v", s.Process.Args, s.Process.Env)
	}
	var data []string
	for _, m := range s.Mounts {
		if m.Destination == "/data" {
			data = append(data, m.Source)
		}
		if m.Destination == "/dev/shm" {
			t.Error("a mount that is to be removed is there")
		}
	}
	if !slices.Equal(data, []string{"/etc"}) {
		t.Errorf("mounts on /data: %v", data)
	}
	if *s.Process.OOMScoreAdj != 300 || s.Process.Rlimits[0].Hard != 50 || s.Annotations["k"] != "v" || s.Annotations["io.kubernetes.cri.container-name"] != "" {
		t.Errorf("OOM score %d, rlimits %v, annotations %v", *s.Process.OOMScoreAdj, s.Process.Rlimits, s.Annotations)
	}
	if len(s.Hooks.Poststop) != 1 || s.Linux.Seccomp.DefaultAction != specs.ActAllow || out.SeccompBPF == "" {
		t.Errorf("hooks %v, seccomp %v", s.Hooks, s.Linux.Seccomp)
	}
	if len(in.Container.Envs) != 2 || in.Container.Command[0] != "a" || len(in.Mounts) != 1 || in.Container.Linux.Resources.OomScoreAdj != 5 {
		t.Errorf("the request has changed: %v", in.Container)
	}
}

// TestAdjustRefused: what a plugin wants is checked as what a client wants.
func TestAdjustRefused(t *testing.T) {
	for word, a := range map[string]*Adjustment{
		"run.oci.handler":  {Annotations: map[string]string{"run.oci.handler": "x"}},
		"not UTF-8":        {Annotations: map[string]string{"x": "\xff"}},
		"absolute path":    {Hooks: &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "x"}}}},
		"hook has a zero":  {Hooks: &specs.Hooks{Poststart: []specs.Hook{{Path: "/x", Args: []string{"a\x00"}}}}},
		"does not exist":   {Mounts: []*runtimeapi.Mount{{ContainerPath: "/x", HostPath: "/no/such"}}},
		"hard limit":       {Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 101, Soft: 1}}},
		"not a device":     {Devices: []*runtimeapi.Device{{HostPath: "/etc/passwd", ContainerPath: "/dev/x"}}},
		"listenerPath":     {Seccomp: &specs.LinuxSeccomp{DefaultAction: specs.ActNotify}},
		"unknown option":   {Tmpfs: []specs.Mount{{Destination: "/x", Options: []string{"context=y"}}}},
		"unified key":      {Resources: &runtimeapi.LinuxContainerResources{Unified: map[string]string{"cgroup.procs": "1"}}},
		"root file system": {Tmpfs: []specs.Mount{{Destination: "/"}}},
	} {
		in := adjustable()
		in.Adjust = a
		if _, err := Build(in); err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%v, want an error with %q", err, word)
		}
	}
}
