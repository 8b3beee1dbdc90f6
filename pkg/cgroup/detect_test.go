package cgroup

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestDetectHere: whatever this machine is, the answer must hold together.
func TestDetectHere(t *testing.T) {
	for _, wanted := range []string{"auto", DriverCgroupfs, DriverSystemd, DriverDisabled} {
		f := Detect(wanted, "")
		t.Logf("%s: %+v", wanted, f)
		if f.Reason == "" {
			t.Error("no reason")
		}
		if f.Enabled() != (f.Root != "") || wanted == DriverDisabled && f.Enabled() {
			t.Errorf("enabled %t with root %q", f.Enabled(), f.Root)
		}
		if f.Version == 1 && f.Enabled() {
			t.Error("v1 cannot be delegated")
		}
	}
}

// TestDetectV1 reads the forms of /proc/self/cgroup.
func TestDetectV1(t *testing.T) {
	for text, want := range map[string]Delegation{
		"9:name=systemd:/\n0::/\n": {Version: 1, Hybrid: true},
		"4:memory:/x\n3:cpu:/\n":   {Version: 1},
		"0::/user.slice\n":         {Version: 2}, // but the mount is not cgroup2
		"":                         {},
	} {
		self := filepath.Join(t.TempDir(), "cgroup")
		if err := os.WriteFile(self, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		f := probe{mount: t.TempDir(), self: self}.detect("auto")
		if f.Version != want.Version || f.Hybrid != want.Hybrid || f.Driver != DriverDisabled || f.Reason == "" {
			t.Errorf("%q: %+v", text, f)
		}
	}
}

// TestBounded: nsdelegate is looked for at the mount that counts, as an option by itself.
func TestBounded(t *testing.T) {
	mount := func(options, at string) string {
		return "30 25 0:26 / " + at + " rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 " + options + "\n"
	}
	for text, want := range map[string]bool{
		mount("rw,nsdelegate,memory_recursiveprot", Mount):                                  true,
		mount("rw", Mount) + mount("rw,nsdelegate", Mount+"/unified"):                       false,
		mount("rw,memory_recursiveprot,xnsdelegate", Mount):                                 false,
		strings.ReplaceAll(mount("rw,nsdelegate", Mount), "cgroup2 cgroup2", "cgroup none"): false,
		"": false,
	} {
		file := filepath.Join(t.TempDir(), "mountinfo")
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := (probe{mount: Mount, mounts: file}).bounded(); got != want {
			t.Errorf("%q: %t", text, got)
		}
	}
	if (probe{mount: Mount, mounts: t.TempDir() + "/none"}).bounded() {
		t.Error("bounded without a list of mounts")
	}
}

func TestPaths(t *testing.T) {
	fs := Delegation{Driver: DriverCgroupfs, Root: Mount + "/user.slice/app"}
	top := Delegation{Driver: DriverCgroupfs, Root: Mount}
	sd := Delegation{Driver: DriverSystemd, Root: Mount + "/user.slice/user@1000.service"}
	for _, c := range []struct {
		delegation             Delegation
		parent, path, dir, err string
	}{
		{fs, "/kubepods/burstable/podX", "/user.slice/app/kubepods/burstable/podX/c", Mount + "/user.slice/app/kubepods/burstable/podX/c", ""},
		{fs, "kubepods", "/user.slice/app/kubepods/c", Mount + "/user.slice/app/kubepods/c", ""},
		{fs, "/user.slice/app/kubepods", "/user.slice/app/kubepods/c", Mount + "/user.slice/app/kubepods/c", ""},
		{fs, "", "/user.slice/app/subpod/p/c", Mount + "/user.slice/app/subpod/p/c", ""},
		{top, "/kubepods", "/kubepods/c", Mount + "/kubepods/c", ""},
		{fs, "/a/../../b", "", "", "bad cgroup parent"},
		{fs, "/a\nb", "", "", "bad cgroup parent"},
		{sd, "/kubepods.slice/kubepods-burstable.slice", "/user.slice/user@1000.service/kubepods.slice/kubepods-burstable.slice/subpod-c.scope/container",
			Mount + "/user.slice/user@1000.service/kubepods.slice/kubepods-burstable.slice/subpod-c.scope/container", ""},
		{sd, "", "/user.slice/user@1000.service/subpod.slice/subpod-p.slice/subpod-c.scope/container",
			Mount + "/user.slice/user@1000.service/subpod.slice/subpod-p.slice/subpod-c.scope/container", ""},
		{sd, "/kubepods/pod1", "", "", "wants the name of a slice"},
		{sd, "a--b.slice", "", "", "wants the name of a slice"},
		{Delegation{Driver: DriverDisabled}, "/../anything", "", "", ""},
	} {
		pod, err := c.delegation.PodPath(c.parent, "p")
		if c.err != "" {
			if !errors.Is(err, ErrBadParent) || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%q: %v", c.parent, err)
			}
			continue
		}
		path, dir := pod.Container("c")
		if err != nil || path != c.path || dir != c.dir {
			t.Errorf("%q: path %q dir %q err %v", c.parent, path, dir, err)
		}
	}
}
