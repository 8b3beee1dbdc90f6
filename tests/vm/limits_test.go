package vm

import (
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/client"
)

// TestLimits: what is asked for stands in the container's cgroup and has its
// effect, with both drivers and both runtimes.
func TestLimits(t *testing.T) {
	for _, driver := range []string{"cgroupfs", "systemd"} {
		t.Run(driver, func(t *testing.T) {
			c := start(t, "[runtime]\ncgroup_manager = \""+driver+"\"")
			checkStatus(t, c, driver)
			for _, handler := range []string{"crun", "runc"} {
				t.Run(handler, func(t *testing.T) {
					p := runPod(t, c, handler, "")
					t.Run("set", func(t *testing.T) { setLimits(t, p) })
					t.Run("oom", func(t *testing.T) { oom(t, p) })
					t.Run("pids", func(t *testing.T) { tooManyProcesses(t, p) })
					t.Run("throttled", func(t *testing.T) { throttled(t, p) })
					t.Run("stats", func(t *testing.T) { statistics(t, p) })
					pod := p.id
					p.remove()
					if left := cgroups(t, pod); len(left) > 0 {
						t.Errorf("left after the pod: %q", left)
					}
				})
			}
		})
	}
}

// checkStatus: the daemon says that limits are delegated, and by which driver.
func checkStatus(t *testing.T, c *client.Client, driver string) {
	t.Helper()
	status, err := c.Status(t.Context(), &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, cond := range status.Status.Conditions {
		if !cond.Status {
			t.Errorf("condition %v", cond)
		}
	}
	t.Logf("cgroup: %s", status.Info["cgroup"])
	for _, controller := range []string{"cpuset", "cpu", "io", "memory", "pids"} {
		if !strings.Contains(status.Info["cgroup"], `"`+controller+`"`) {
			t.Errorf("controller %s is not delegated: %s", controller, status.Info["cgroup"])
		}
	}
	config, err := c.RuntimeConfig(t.Context(), &runtimeapi.RuntimeConfigRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.ToLower(config.Linux.CgroupDriver.String()); got != driver {
		t.Errorf("the kubelet is told to use the driver %s, want %s", got, driver)
	}
}

const mib = 1 << 20

// use makes an outer test's pod one of the subtest's own.
func (p *pod) use(t *testing.T) *pod {
	q := *p
	q.t = t
	return &q
}

func setLimits(t *testing.T, p *pod) {
	p = p.use(t)
	id := p.start("sleep 1000", &runtimeapi.LinuxContainerResources{
		CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 2048, CpusetCpus: "0", CpusetMems: "0",
		MemoryLimitInBytes: 64 * mib, MemorySwapLimitInBytes: 96 * mib,
		HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 0}},
		Unified:        map[string]string{"pids.max": "50", "memory.high": "50331648", "memory.oom.group": "1"},
	})
	want := func(when string, files map[string]string) (weight string) {
		t.Helper()
		got := p.files(id, append(slices.Collect(maps.Keys(files)), "cpu.weight")...)
		for name, value := range files {
			if got[name] != value {
				t.Errorf("%s: %s is %q, want %q", when, name, got[name], value)
			}
		}
		return got["cpu.weight"]
	}
	weight := want("created", map[string]string{
		"cpu.max": "50000 100000", "cpuset.cpus": "0", "cpuset.mems": "0", "memory.max": "67108864", "memory.swap.max": "33554432",
		"pids.max": "50", "memory.high": "50331648", "memory.oom.group": "1",
	})
	if weight == "100" {
		t.Errorf("2048 shares became the default weight")
	}
	where := cgroups(t, id)
	t.Logf("weight %s of 2048 shares, cgroup %q", weight, where)
	_, err := p.c.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id,
		Linux: &runtimeapi.LinuxContainerResources{
			CpuPeriod: 50000, CpuQuota: 40000, CpuShares: 4096, CpusetCpus: "0-1", MemoryLimitInBytes: 128 * mib, MemorySwapLimitInBytes: 128 * mib,
			Unified: map[string]string{"pids.max": "70", "memory.high": "max"},
		}})
	if err != nil {
		t.Fatal(err)
	}
	after := want("updated", map[string]string{
		"cpu.max": "40000 50000", "cpuset.cpus": "0-1", "memory.max": "134217728", "memory.swap.max": "0",
		"pids.max": "70", "memory.high": "max", "memory.oom.group": "1",
	})
	if after == weight {
		t.Errorf("the weight stays %s with 4096 shares", after)
	}
	status, err := p.c.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		t.Fatal(err)
	}
	if got := status.Status.GetResources().GetLinux().GetMemoryLimitInBytes(); got != 128*mib {
		t.Errorf("the status tells a memory limit of %d after the update", got)
	}
	if _, err := p.c.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	if left := cgroups(t, id); len(left) > 0 {
		t.Errorf("left after the container: %q", left)
	}
}

// oom: the kernel kills what needs more than its limit, and the reason says so.
func oom(t *testing.T, p *pod) {
	p = p.use(t)
	id := p.start("exec tail /dev/zero", &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 16 * mib})
	if s := p.exited(id); s.ExitCode != 137 || s.Reason != "OOMKilled" {
		t.Errorf("exit code %d, reason %q, want 137 and OOMKilled", s.ExitCode, s.Reason)
	}
	// A child of the container is killed, and the container ends by itself.
	id = p.start("tail /dev/zero; sleep 1; exit 3", &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 16 * mib})
	if s := p.exited(id); s.ExitCode != 3 {
		t.Errorf("exit code %d after the kill of a child, want the container's own 3 (reason %q)", s.ExitCode, s.Reason)
	}
}

// tooManyProcesses: a fork above the limit is refused. The limit leaves room for runc,
// whose many threads count while it execs. What was started stays until the look, which
// the shell takes without a process of its own.
func tooManyProcesses(t *testing.T, p *pod) {
	p = p.use(t)
	id := p.start("sleep 1000", &runtimeapi.LinuxContainerResources{Unified: map[string]string{"pids.max": "100"}})
	out := p.exec(id, "(for i in $(seq 150); do sleep 1000 & done) 2>&1 || true; while read -r what n; do echo $what $n; done </sys/fs/cgroup/pids.events")
	if !regexp.MustCompile(`(?m)^max [1-9]`).MatchString(out) {
		t.Errorf("no fork was refused: %q", out)
	}
}

func throttled(t *testing.T, p *pod) {
	p = p.use(t)
	id := p.start("while :; do :; done", &runtimeapi.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 20000})
	// From outside: what runs in the container waits for its share as well.
	as(t, "root", "for i in $(seq 600); do grep -rqs --include=cpu.stat '^nr_throttled [1-9]' "+strings.Join(cgroups(t, id), " ")+" && exit; sleep .1; done; echo never throttled >&2; exit 1")
}

// statistics come from the cgroup, pressure included.
func statistics(t *testing.T, p *pod) {
	p = p.use(t)
	id := p.start("sleep 1000", &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 * mib})
	resp, err := p.c.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: id})
	if err != nil {
		t.Fatal(err)
	}
	s := resp.Stats
	if s.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 || s.GetCpu().GetPsi() == nil {
		t.Errorf("cpu %v", s.GetCpu())
	}
	m := s.GetMemory()
	if m.GetWorkingSetBytes().GetValue() == 0 || m.GetAvailableBytes().GetValue() == 0 || m.GetAvailableBytes().GetValue() > 64*mib || m.GetPsi() == nil {
		t.Errorf("memory %v", m)
	}
	if s.GetIo().GetPsi() == nil {
		t.Errorf("io %v", s.GetIo())
	}
	if s.GetSwap() == nil {
		t.Error("no swap statistics")
	}
	sandbox, err := p.c.PodSandboxStats(t.Context(), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: p.id})
	if err != nil {
		t.Fatal(err)
	}
	l := sandbox.Stats.GetLinux()
	if l.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 || l.GetCpu().GetPsi() == nil ||
		l.GetMemory().GetWorkingSetBytes().GetValue() < m.GetWorkingSetBytes().GetValue()/2 || l.GetProcess().GetProcessCount().GetValue() == 0 {
		t.Errorf("pod %v", l)
	}
	if l.GetMemory().GetWorkingSetBytes().GetValue() > 512*mib {
		t.Errorf("the pod's memory is more than its own: %v", l.GetMemory())
	}
}
