package fields

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func limits(r *runtimeapi.LinuxContainerResources) change {
	return func(c *ctrConfig) { c.Linux.Resources = r }
}

// TestResources: limits without a delegated controller are left out and named in
// the log; the container runs. Where controllers are delegated, TestDelegated of
// pkg/cgroup and critest look at what they do.
func TestResources(t *testing.T) {
	start(t, nil, func(e env) {
		p := e.pod("limits", nil)
		asked := &runtimeapi.LinuxContainerResources{
			CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512, CpusetCpus: "0",
			MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 96 << 20,
			HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 0}},
			Unified:        map[string]string{"memory.min": "1048576", "memory.oom.group": "1"},
		}
		c := p.start("limits", idle(), limits(asked))
		c.sh("true")
		got := c.status().GetResources().GetLinux()
		e.equal("limits in the status", fmt.Sprint(got.GetCpuQuota(), got.GetMemoryLimitInBytes(), got.GetUnified()), fmt.Sprint(asked.CpuQuota, asked.MemoryLimitInBytes, asked.Unified))
		if !e.limited() {
			e.logged("cpu_quota", "cpu_shares", "cpuset_cpus", "memory_limit_in_bytes", "memory_swap_limit_in_bytes", "hugepage_limits of 2MB", "unified memory.min")
		}

		own, err := strconv.Atoi(strings.TrimSpace(e.n.Enter("cat", "/proc/self/oom_score_adj")))
		e.must(err)
		for i, score := range []int64{-997, 0, 500, 1000} {
			c := p.start(fmt.Sprintf("oom-%d", i), idle(), limits(&runtimeapi.LinuxContainerResources{OomScoreAdj: score}))
			e.equal(fmt.Sprintf("oom_score_adj %d", score), c.exec("cat", "/proc/1/oom_score_adj"), max(score, int64(own)+100))
		}
		e.logged("oom_score_adj -997 is below")

		for what, r := range map[string]*runtimeapi.LinuxContainerResources{
			"oom_score_adj of 2000":     {OomScoreAdj: 2000},
			"negative shares":           {CpuShares: -1},
			"swap below memory":         {MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 32 << 20},
			"a huge page size of 2 bad": {HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "../2MB"}}},
			"unified that is a path":    {Unified: map[string]string{"memory/../x": "1"}},
			"unified cgroup.procs":      {Unified: map[string]string{"cgroup.procs": "1"}},
		} {
			_, err := p.tryCreate("refused", idle(), limits(r))
			e.refused(what, err, codes.InvalidArgument)
		}

		update := func(id string, r *runtimeapi.LinuxContainerResources) error {
			_, err := e.cri.UpdateContainerResources(e.Context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id, Linux: r})
			return err
		}
		e.must(update(c.id, &runtimeapi.LinuxContainerResources{CpuQuota: 70000}))
		got = c.status().GetResources().GetLinux()
		e.equal("limits after an update", fmt.Sprint(got.GetCpuQuota(), got.GetCpuPeriod(), got.GetMemoryLimitInBytes()), "70000 100000 67108864")
		e.refused("update with a bad limit", update(c.id, &runtimeapi.LinuxContainerResources{CpuShares: -5}), codes.InvalidArgument)
		e.refused("update of no container", update("0123", &runtimeapi.LinuxContainerResources{}), codes.NotFound)
		c.stop(1)
		e.refused("update of an exited container", update(c.id, &runtimeapi.LinuxContainerResources{CpuQuota: 1000}), codes.FailedPrecondition)

		updatePod := func(id string) error {
			_, err := e.cri.UpdatePodSandboxResources(e.Context(), &runtimeapi.UpdatePodSandboxResourcesRequest{
				PodSandboxId: id, Resources: &runtimeapi.LinuxContainerResources{CpuShares: 2048, MemoryLimitInBytes: 128 << 20},
				Overhead: &runtimeapi.LinuxContainerResources{CpuShares: 10},
			})
			return err
		}
		e.must(updatePod(p.id))
		e.refused("update of no pod", updatePod("0123"), codes.NotFound)
	})
}

// limited reports whether the node sets limits: its Status says so.
func (e env) limited() bool {
	e.Helper()
	status, err := e.cri.Status(e.Context(), &runtimeapi.StatusRequest{})
	e.must(err)
	for _, c := range status.Status.Conditions {
		if c.Type == "ResourceLimits" {
			if !c.Status && c.Message == "" {
				e.Error("Status says that there are no limits, and not why")
			}
			return c.Status
		}
	}
	e.Error("Status has no condition ResourceLimits")
	return false
}

func TestDevices(t *testing.T) {
	start(t, nil, func(e env) {
		e.n.WriteHome(".config/cdi/example.json", `{"cdiVersion": "0.6.0", "kind": "example.com/device",
			"containerEdits": {"env": ["CDI_KIND=yes"]},
			"devices": [{"name": "one", "containerEdits": {
				"env": ["CDI_DEVICE=one"],
				"deviceNodes": [{"path": "/dev/cdi-one", "hostPath": "/dev/fuse"}],
				"mounts": [{"hostPath": "`+filepath.Join(e.n.Home, ".config/cdi")+`", "containerPath": "/cdi", "options": ["ro", "rbind"]}]}}]}`)
		p := e.pod("devices", nil)
		c := p.start("devices", idle(), func(c *ctrConfig) {
			c.Devices = []*runtimeapi.Device{
				{HostPath: "/dev/fuse", ContainerPath: "/dev/my-fuse", Permissions: "rwm"},
				{HostPath: "/dev/net/tun", ContainerPath: "/dev/net/tun", Permissions: "rw"},
			}
			c.CDIDevices = []*runtimeapi.CDIDevice{{Name: "example.com/device=one"}}
		})
		e.equal("major and minor", c.exec("stat", "-c", "%t:%T", "/dev/my-fuse"), "a:e5")
		c.sh(": <>/dev/my-fuse; : <>/dev/net/tun; : <>/dev/cdi-one")
		e.equal("CDI environment", c.sh("echo $CDI_KIND $CDI_DEVICE"), "yes one")
		e.contains("CDI mount", c.exec("ls", "/cdi"), "example.json")
		c.fails("touch /cdi/x", "ead-only file system")
		for _, device := range []string{"null", "zero", "full", "random", "urandom", "tty", "ptmx"} {
			c.sh("test -c /dev/" + device)
		}
		file := filepath.Join(e.n.Dir, "plain-"+e.handler)
		e.must(os.WriteFile(file, nil, 0o600))
		for what, edit := range map[string]change{
			"missing device": func(c *ctrConfig) {
				c.Devices = []*runtimeapi.Device{{HostPath: "/dev/no-such", ContainerPath: "/dev/x"}}
			},
			"no device": func(c *ctrConfig) { c.Devices = []*runtimeapi.Device{{HostPath: file, ContainerPath: "/dev/x"}} },
			"bad permissions": func(c *ctrConfig) {
				c.Devices = []*runtimeapi.Device{{HostPath: "/dev/null", ContainerPath: "/dev/x", Permissions: "rx"}}
			},
			"unknown CDI device": func(c *ctrConfig) { c.CDIDevices = []*runtimeapi.CDIDevice{{Name: "example.com/device=two"}} },
		} {
			_, err := p.tryCreate("refused", idle(), edit)
			e.refused(what, err, codes.InvalidArgument)
		}
	})
}
