package cri

import (
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/pkg/cgroup"
	"github.com/subpod/subpod/pkg/oci"
	"github.com/subpod/subpod/pkg/proc"
	"github.com/subpod/subpod/pkg/state"
)

func TestMeasurable(t *testing.T) {
	c := containerRecord("c", "p", isRunning, map[string]string{"l": "2"})
	c.Allocated.Cgroup, c.Allocated.ImageName = "/cg/c", "docker.io/library/busybox:1"
	c.Resources = state.Msg(&runtimeapi.LinuxContainerResources{CpuShares: 9})
	got := measurable(c)
	if got.Init != (proc.ID{}) {
		t.Errorf("a container without a process has %v", got.Init)
	}
	c.Allocated.Runtime = &oci.Container{Init: proc.ID{PID: 42}}
	got = measurable(c)
	if got.Cgroup != "/cg/c" || got.Image != "docker.io/library/busybox:1" || got.StartedAt != started || got.Resources.CpuShares != 9 || got.Init.PID != 42 {
		t.Errorf("measured is %+v", got)
	}
	equal(t, "the attributes", got.Attributes, &runtimeapi.ContainerAttributes{
		Id: "c", Metadata: &runtimeapi.ContainerMetadata{Name: "n-c"}, Labels: map[string]string{"l": "2"}, Annotations: map[string]string{"a": "1"},
	})
}

func TestMeasurableContainers(t *testing.T) {
	containers := []state.Container{
		containerRecord("aa1", "p1", isRunning, map[string]string{"app": "web"}),
		containerRecord("aa2", "p1", isExited, map[string]string{"app": "web"}),
		containerRecord("bb3", "p2", isRunning, nil),
		containerRecord("bb4", "p2", isCreated, nil),
	}
	for name, c := range map[string]struct {
		filter *runtimeapi.ContainerStatsFilter
		want   string
	}{
		"no filter": {nil, "aa1 bb3"},
		"prefix":    {&runtimeapi.ContainerStatsFilter{Id: "bb"}, "bb3"},
		"pod":       {&runtimeapi.ContainerStatsFilter{PodSandboxId: "p1"}, "aa1"},
		"label":     {&runtimeapi.ContainerStatsFilter{LabelSelector: map[string]string{"app": "web"}}, "aa1"},
	} {
		var ids []string
		for _, x := range measurableContainers(containers, c.filter) {
			ids = append(ids, x.Attributes.Id)
		}
		if got := strings.Join(ids, " "); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestMeasurablePods(t *testing.T) {
	s, err := state.Open(filepath.Join(t.TempDir(), "state.db"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ready := podRecord("p1", state.PodReady, nil)
	ready.Config.V.Linux = &runtimeapi.LinuxPodSandboxConfig{CgroupParent: "/kubepods/pod1"}
	ready.Allocated.Pins.Net, ready.Allocated.Network = "/run/net", &netns.Result{Interface: "eth7"}
	for _, p := range []state.Pod{ready, podRecord("p2", state.PodNotReady, nil), podRecord("p3", state.PodReady, nil)} {
		if err := s.PutPod(p); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []state.Container{containerRecord("c1", "p1", isRunning, nil), containerRecord("c2", "p1", isExited, nil)} {
		if err := s.PutContainer(c); err != nil {
			t.Fatal(err)
		}
	}
	delegation := cgroup.Delegation{Version: 2, Delegated: true, Root: "/sys/fs/cgroup/me", Driver: cgroup.DriverCgroupfs}
	list := measurablePods(s, delegation, func(p state.Pod) bool { return p.ID != "p3" })
	if len(list) != 1 {
		t.Fatalf("%d pod sandboxes, want the ready one", len(list))
	}
	got := list[0]
	if got.Attributes.Id != "p1" || got.NetNS != "/run/net" || got.Interface != "eth7" || got.Cgroup != "/sys/fs/cgroup/me/kubepods/pod1" {
		t.Errorf("measured is %+v", got)
	}
	if len(got.Containers) != 1 || got.Containers[0].Attributes.Id != "c1" {
		t.Errorf("containers %+v, want the running one", got.Containers)
	}
	if got := measurablePod(ready, nil, cgroup.Delegation{}); got.Cgroup != "" {
		t.Errorf("without a delegation the cgroup is %q", got.Cgroup)
	}
}
