package sandbox

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/cgroup"
	"github.com/subpod/subpod/pkg/state"
)

// TestLimitOfPod: the limits of a pod as a whole are set in its own cgroup, at first and when
// they change.
func TestLimitOfPod(t *testing.T) {
	root := t.TempDir()
	b := &Builder{Cgroup: cgroup.Delegation{Version: 2, Driver: cgroup.DriverCgroupfs, Root: root, Controllers: []string{"cpu", "memory"}}}
	group, err := b.Cgroup.PodPath("", "p")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(group.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	fresh := func() {
		for _, name := range []string{"cpu.max", "memory.max"} {
			if err := os.WriteFile(filepath.Join(group.Dir, name), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	limits := func(p state.Pod) string {
		t.Helper()
		fresh()
		leftOut, err := b.Limit(p)
		if err != nil {
			t.Fatal(err)
		}
		cpu, _ := os.ReadFile(filepath.Join(group.Dir, "cpu.max"))
		memory, _ := os.ReadFile(filepath.Join(group.Dir, "memory.max"))
		return strings.Join(append(leftOut, string(cpu), string(memory)), "; ")
	}
	p := state.Pod{ID: "p", Allocated: state.PodResources{Cgroup: group.Dir}, Config: state.Msg(&runtimeapi.PodSandboxConfig{
		Linux: &runtimeapi.LinuxPodSandboxConfig{Resources: &runtimeapi.LinuxContainerResources{CpuQuota: 10000, CpuPeriod: 50000, MemoryLimitInBytes: 1000}},
	})}
	if got, want := limits(p), "10000 50000; 1000"; got != want {
		t.Errorf("at first: %s, want %s", got, want)
	}
	p.Resources = state.Msg(&runtimeapi.LinuxContainerResources{CpuQuota: 20000, CpuPeriod: 50000, MemoryLimitInBytes: 2000, CpusetCpus: "0"})
	p.Overhead = state.Msg(&runtimeapi.LinuxContainerResources{CpuQuota: 10000, CpuPeriod: 100000, MemoryLimitInBytes: 24})
	if got := limits(p); !strings.HasSuffix(got, "25000 50000; 2024") || !strings.Contains(got, "cpuset") {
		t.Errorf("changed, with what the pod costs itself: %s", got)
	}
	p.Allocated.Cgroup = "" // a kubelet's
	if got := limits(p); got != "; " {
		t.Errorf("a cgroup of someone else's: %s", got)
	}
}
