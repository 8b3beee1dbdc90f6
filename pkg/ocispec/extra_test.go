package ocispec

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// extraInput is the smallest input with extra, and an image with a group file.
func extraInput(t *testing.T, extra Extra) Input {
	t.Helper()
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "etc/group"), []byte("root:x:0:\nmail:x:8:\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return Input{
		Pod: &runtimeapi.PodSandboxConfig{}, Container: &runtimeapi.ContainerConfig{Args: []string{"cmd"}}, Rootfs: root,
		Image: v1.ImageConfig{Env: []string{"PATH=/x", "A=1"}}, Host: Host{HardLimits: map[string]uint64{"RLIMIT_NOFILE": 1000}}, Extra: extra,
	}
}

// TestExtra: what the CRI has no field for is in the specification.
func TestExtra(t *testing.T) {
	mask := uint32(0o27)
	out, err := Build(extraInput(t, Extra{
		Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 10, Hard: 1000}},
		Tmpfs:   []specs.Mount{{Destination: "/scratch", Options: []string{"size=8388608", "noexec"}}},
		Umask:   &mask, Groups: []string{"mail"}, UnsetEnv: []string{"A"}, Init: "/bin/sh",
	}))
	if err != nil {
		t.Fatal(err)
	}
	p := out.Spec.Process
	if len(p.Rlimits) != 1 || p.Rlimits[0].Soft != 10 {
		t.Errorf("limits: %+v", p.Rlimits)
	}
	if p.User.Umask == nil || *p.User.Umask != mask || !slices.Contains(p.User.AdditionalGids, 8) {
		t.Errorf("user: %+v", p.User)
	}
	if slices.Contains(p.Env, "A=1") || !slices.Contains(p.Env, "PATH=/x") {
		t.Errorf("environment: %q", p.Env)
	}
	if want := []string{initPath, "--", "cmd"}; !slices.Equal(p.Args, want) {
		t.Errorf("arguments: %q", p.Args)
	}
	for _, dst := range []string{"/scratch", initPath} {
		if !slices.ContainsFunc(out.Spec.Mounts, func(m specs.Mount) bool { return m.Destination == dst }) {
			t.Errorf("nothing is mounted on %s", dst)
		}
	}
	all, err := Build(extraInput(t, Extra{UnsetAll: true}))
	if err != nil || slices.ContainsFunc(all.Spec.Process.Env, func(v string) bool { return !strings.HasPrefix(v, "HOME=") }) {
		t.Errorf("environment: %q, %v", all.Spec.Process.Env, err)
	}
}

// TestExtraInvalid: what cannot be given is refused.
func TestExtraInvalid(t *testing.T) {
	big := uint32(0o7777)
	for name, extra := range map[string]Extra{
		"unknown limit":  {Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_X"}}},
		"soft over hard": {Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 2, Hard: 1}}},
		"over the host":  {Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1, Hard: 2000}}},
		"umask":          {Umask: &big},
		"group":          {Groups: []string{"nosuch"}},
		"tmpfs path":     {Tmpfs: []specs.Mount{{Destination: "relative"}}},
		"tmpfs option":   {Tmpfs: []specs.Mount{{Destination: "/x", Options: []string{"lowerdir=/etc"}}}},
	} {
		if _, err := Build(extraInput(t, extra)); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
}
