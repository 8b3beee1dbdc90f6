package cri

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/pkg/events"
	"github.com/subpod/subpod/pkg/oci"
	"github.com/subpod/subpod/pkg/proc"
	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/storage"
)

var (
	created  = time.Unix(100, 5)
	started  = time.Unix(200, 6)
	finished = time.Unix(300, 7)
)

func podRecord(id string, phase state.PodPhase, labels map[string]string) state.Pod {
	return state.Pod{
		ID: id, Handler: "runc", CreatedAt: created, Status: state.PodStatus{Phase: phase},
		Config: state.Msg(&runtimeapi.PodSandboxConfig{
			Metadata: &runtimeapi.PodSandboxMetadata{Name: "n-" + id}, Labels: labels, Annotations: map[string]string{"a": "1"},
		}),
	}
}

func containerRecord(id, podID string, status state.ContainerStatus, labels map[string]string) state.Container {
	return state.Container{
		ID: id, PodID: podID, CreatedAt: created, Status: status,
		Config: state.Msg(&runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "n-" + id}, Labels: labels, Annotations: map[string]string{"a": "1"},
			Image: &runtimeapi.ImageSpec{Image: "busybox"},
		}),
	}
}

var (
	isCreated = state.ContainerStatus{Created: true}
	isRunning = state.ContainerStatus{Created: true, StartedAt: started}
	isExited  = state.ContainerStatus{Created: true, StartedAt: started, FinishedAt: finished, ExitCode: 137, Reason: "OOMKilled", Message: "m"}
)

// equal compares messages, and reports the difference as text.
func equal(t *testing.T, what string, got, want proto.Message) {
	t.Helper()
	if !proto.Equal(got, want) {
		t.Errorf("%s is\n%v\nwant\n%v", what, got, want)
	}
}

func TestListPods(t *testing.T) {
	pods := []state.Pod{
		podRecord("ab1", state.PodReady, map[string]string{"app": "web", "tier": "1"}),
		podRecord("ab2", state.PodCreating, map[string]string{"app": "web"}),
		podRecord("cd3", state.PodNotReady, nil),
		podRecord("cd4", state.PodStopping, nil),
		podRecord("ab5", state.PodCreating, nil), // being built: not listed
	}
	pods[1].Status.Reason = "creation failed"
	for name, c := range map[string]struct {
		filter *runtimeapi.PodSandboxFilter
		want   string
	}{
		"no filter":    {nil, "ab1 ab2 cd3 cd4"},
		"empty filter": {&runtimeapi.PodSandboxFilter{}, "ab1 ab2 cd3 cd4"},
		"prefix":       {&runtimeapi.PodSandboxFilter{Id: "ab"}, "ab1 ab2"},
		"longer":       {&runtimeapi.PodSandboxFilter{Id: "ab12"}, ""},
		"ready":        {&runtimeapi.PodSandboxFilter{State: &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}}, "ab1"},
		"not ready":    {&runtimeapi.PodSandboxFilter{State: &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY}}, "ab2 cd3 cd4"},
		"label":        {&runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"app": "web"}}, "ab1 ab2"},
		"labels":       {&runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"app": "web", "tier": "1"}}, "ab1"},
		"empty value":  {&runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"other": ""}}, ""},
	} {
		var ids []string
		for _, p := range listPods(pods, c.filter) {
			ids = append(ids, p.Id)
		}
		if got := strings.Join(ids, " "); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	equal(t, "the pod sandbox", listPods(pods, nil)[0], &runtimeapi.PodSandbox{
		Id: "ab1", Metadata: &runtimeapi.PodSandboxMetadata{Name: "n-ab1"}, State: runtimeapi.PodSandboxState_SANDBOX_READY,
		CreatedAt: created.UnixNano(), Labels: map[string]string{"app": "web", "tier": "1"}, Annotations: map[string]string{"a": "1"}, RuntimeHandler: "runc",
	})
}

func TestListContainers(t *testing.T) {
	containers := []state.Container{
		containerRecord("aa1", "p1", isCreated, map[string]string{"app": "web"}),
		containerRecord("aa2", "p1", isRunning, nil),
		containerRecord("bb3", "p2", isExited, nil),
		containerRecord("bb4", "p2", state.ContainerStatus{}, nil), // not created: never listed
	}
	for name, c := range map[string]struct {
		filter *runtimeapi.ContainerFilter
		want   string
	}{
		"no filter": {nil, "aa1 aa2 bb3"},
		"prefix":    {&runtimeapi.ContainerFilter{Id: "aa"}, "aa1 aa2"},
		"pod":       {&runtimeapi.ContainerFilter{PodSandboxId: "p2"}, "bb3"},
		"both":      {&runtimeapi.ContainerFilter{Id: "aa", PodSandboxId: "p2"}, ""},
		"running":   {&runtimeapi.ContainerFilter{State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}}, "aa2"},
		"created":   {&runtimeapi.ContainerFilter{State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_CREATED}}, "aa1"},
		"label":     {&runtimeapi.ContainerFilter{LabelSelector: map[string]string{"app": "web"}}, "aa1"},
	} {
		var ids []string
		for _, x := range listContainers(containers, c.filter) {
			ids = append(ids, x.Id)
		}
		if got := strings.Join(ids, " "); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestPodStatus(t *testing.T) {
	p := podRecord("p", state.PodReady, nil)
	equal(t, "a pod sandbox without a network", podStatus(p), &runtimeapi.PodSandboxStatus{
		Id: "p", Metadata: &runtimeapi.PodSandboxMetadata{Name: "n-p"}, State: runtimeapi.PodSandboxState_SANDBOX_READY, CreatedAt: created.UnixNano(),
		Network: &runtimeapi.PodSandboxNetworkStatus{}, Annotations: map[string]string{"a": "1"}, RuntimeHandler: "runc",
		Linux: &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{Options: &runtimeapi.NamespaceOption{}}},
	})
	p.Allocated.Network = &netns.Result{IPs: []netip.Addr{netip.MustParseAddr("10.88.0.2"), netip.MustParseAddr("fd00::2")}}
	p.Config.V.Linux = &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
		NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
	}}
	got := podStatus(p)
	equal(t, "the network", got.Network, &runtimeapi.PodSandboxNetworkStatus{Ip: "10.88.0.2", AdditionalIps: []*runtimeapi.PodIP{{Ip: "fd00::2"}}})
	equal(t, "the namespaces", got.Linux.Namespaces.Options, &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER})
}

func TestContainerStatus(t *testing.T) {
	c := containerRecord("c", "p", isExited, map[string]string{"l": "2"})
	c.Config.V.Mounts = []*runtimeapi.Mount{{ContainerPath: "/data", HostPath: "/h"}}
	c.Allocated = state.ContainerResources{
		ImageID: "123", ImageRef: "docker.io/library/busybox@sha256:1", LogPath: "/log", StopSignal: 3,
		User: state.User{UID: 5, GID: 6, Groups: []uint32{7, 8}},
	}
	want := &runtimeapi.ContainerStatus{
		Id: "c", Metadata: &runtimeapi.ContainerMetadata{Name: "n-c"}, State: runtimeapi.ContainerState_CONTAINER_EXITED,
		CreatedAt: created.UnixNano(), StartedAt: started.UnixNano(), FinishedAt: finished.UnixNano(), ExitCode: 137, Reason: "OOMKilled", Message: "m",
		Image: &runtimeapi.ImageSpec{Image: "busybox"}, ImageRef: "docker.io/library/busybox@sha256:1", ImageId: "123",
		Labels: map[string]string{"l": "2"}, Annotations: map[string]string{"a": "1"}, Mounts: c.Config.V.Mounts, LogPath: "/log",
		User:       &runtimeapi.ContainerUser{Linux: &runtimeapi.LinuxContainerUser{Uid: 5, Gid: 6, SupplementalGroups: []int64{7, 8}}},
		StopSignal: runtimeapi.Signal_SIGNAL_SIGQUIT,
	}
	equal(t, "the status", containerStatus(c), want)
	c.Resources = state.Msg(&runtimeapi.LinuxContainerResources{CpuShares: 9})
	want.Resources = &runtimeapi.ContainerResources{Linux: &runtimeapi.LinuxContainerResources{CpuShares: 9}}
	equal(t, "the status with limits", containerStatus(c), want)
	c.Status = isCreated
	if got := containerStatus(c); got.StartedAt != 0 || got.FinishedAt != 0 || got.State != runtimeapi.ContainerState_CONTAINER_CREATED {
		t.Errorf("a created container: %v", got)
	}
}

// TestImageName: ContainerStatus.image is a name, also where the request named an ID, as
// the kubelet does.
func TestImageName(t *testing.T) {
	const id = "6d3e4188a38af91b0c1577b9e88c53368926b2fe0e1fb985d6e8a70040520c4d"
	for _, c := range []struct{ asked, name, want string }{
		{"busybox", "busybox", "busybox"},
		{id, "docker.io/library/busybox:1.36", "docker.io/library/busybox:1.36"},
		{id, id, id},               // an image without a name
		{"busybox", "", "busybox"}, // a record of an older version
	} {
		r := containerRecord("c", "p", isRunning, nil)
		r.Config.V.Image = &runtimeapi.ImageSpec{Image: c.asked, UserSpecifiedImage: "u", RuntimeHandler: "h", Annotations: map[string]string{"k": "v"}}
		r.Allocated.ImageName = c.name
		want := &runtimeapi.ImageSpec{Image: c.want, UserSpecifiedImage: "u", RuntimeHandler: "h", Annotations: map[string]string{"k": "v"}}
		equal(t, "the image in the status", containerStatus(r).Image, want)
		equal(t, "the image in the list", listContainers([]state.Container{r}, nil)[0].Image, want)
		if r.Config.V.Image.Image != c.asked {
			t.Errorf("the record's request has changed to %q", r.Config.V.Image.Image)
		}
	}
}

func TestContainerEvent(t *testing.T) {
	e := &events.Event{
		Type: runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT, ID: "c1", At: finished, Pod: podRecord("p", state.PodReady, nil),
		Containers: []state.Container{containerRecord("c1", "p", isExited, nil), containerRecord("c2", "p", state.ContainerStatus{}, nil)},
	}
	got := containerEvent(e)
	if got.ContainerId != "c1" || got.ContainerEventType != e.Type || got.CreatedAt != finished.UnixNano() || got.PodSandboxStatus.Id != "p" {
		t.Errorf("the event is %v", got)
	}
	if len(got.ContainersStatuses) != 1 || got.ContainersStatuses[0].Id != "c1" {
		t.Errorf("the containers are %v, want the created one", got.ContainersStatuses)
	}
}

func TestVerbose(t *testing.T) {
	p := podRecord("p", state.PodReady, nil)
	c := containerRecord("c", "p", isRunning, nil)
	c.Allocated.Runtime = &oci.Container{Init: proc.ID{PID: 42}}
	for name, get := range map[string]func() (map[string]string, error){
		"pod sandbox": func() (map[string]string, error) { return podInfo(p, []state.Container{c}) },
		"container": func() (map[string]string, error) {
			return containerInfo(c, []byte(`{"ociVersion": "1.0.2"}`), nil, true)
		},
	} {
		info, err := get()
		if err != nil {
			t.Fatal(err)
		}
		var got map[string]any
		if err := json.Unmarshal([]byte(info["info"]), &got); err != nil || len(info) != 1 {
			t.Fatalf("%s: %v, %v", name, info, err)
		}
		keys := []string{"id", "facts", "status", "config", "pid", "runtimeSpec"}
		if name == "container" {
			keys = append(keys, "sandboxID", "paused")
		}
		for _, key := range keys {
			if _, ok := got[key]; !ok {
				t.Errorf("%s: the verbose status has no %q", name, key)
			}
		}
		if pid, ok := got["pid"]; ok && pid != 42.0 {
			t.Errorf("%s: pid %v", name, pid)
		}
	}
}

// TestPID: a container that has ended, or a pod sandbox that was stopped, has no process,
// whoever has its PID by now; a pod sandbox without a pause process has its containers'.
func TestPID(t *testing.T) {
	c := containerRecord("c", "p", isExited, nil)
	c.Allocated.Runtime = &oci.Container{Init: proc.ID{PID: 42}}
	if pid := initPID(c); pid != 0 {
		t.Errorf("PID of a container that has ended: %d", pid)
	}
	p := podRecord("p", state.PodReady, nil)
	p.Allocated.Pins = netns.Pins{Net: "/run/net", Pause: proc.ID{PID: 7}}
	info, err := podInfo(p, []state.Container{c})
	if err != nil || !strings.Contains(info["info"], `"pid":7`) || !strings.Contains(info["info"], `"namespaces":[{"type":"network","path":"/run/net"}]`) {
		t.Errorf("verbose status of a pod sandbox with a pause process: %v, %v", info, err)
	}
	p.Status.Phase = state.PodNotReady
	if info, err := podInfo(p, []state.Container{c}); err != nil || !strings.Contains(info["info"], `"pid":0`) {
		t.Errorf("verbose status of a pod sandbox that was stopped: %v, %v", info, err)
	}
}

// TestHandlerUnnamed: the runtime handler is shown as it was asked for.
func TestHandlerUnnamed(t *testing.T) {
	p := podRecord("p", state.PodReady, nil)
	p.HandlerUnnamed = true
	if got := podStatus(p).RuntimeHandler; got != "" {
		t.Errorf("the status has the runtime handler %q", got)
	}
	if got := listPods([]state.Pod{p}, nil)[0].RuntimeHandler; got != "" {
		t.Errorf("the list has the runtime handler %q", got)
	}
}

func TestCRIImage(t *testing.T) {
	for _, c := range []struct {
		user string
		uid  *runtimeapi.Int64Value
		name string
	}{
		{"", nil, ""},
		{"1000", &runtimeapi.Int64Value{Value: 1000}, ""},
		{"0:0", &runtimeapi.Int64Value{Value: 0}, ""},
		{"web", nil, "web"},
		{"web:staff", nil, "web"},
		{strings.Repeat("ä", 2<<20) + ":staff", nil, strings.Repeat("ä", maxUsername/2)},
	} {
		got := criImage(storage.Image{ID: "1", RepoTags: []string{"t"}, RepoDigests: []string{"d"}, User: c.user, Pinned: true})
		equal(t, "the image of user "+c.user, got, &runtimeapi.Image{
			Id: "1", RepoTags: []string{"t"}, RepoDigests: []string{"d"}, Size: 1, Uid: c.uid, Username: c.name,
			Spec: &runtimeapi.ImageSpec{Image: "1"}, Pinned: true,
		})
	}
}
