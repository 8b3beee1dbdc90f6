package cri

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/events"
	"github.com/subpod/subpod/pkg/health"
	"github.com/subpod/subpod/pkg/pod/sandbox"
	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/workload"
)

// This file converts records to CRI messages. It reads nothing but the records.

// podInfo returns the verbose part of a pod sandbox's status, as JSON. Tools that know
// other runtimes look for pid and runtimeSpec: pid is a process in the pod's namespaces, the
// pause process or a container's, 0 where there is none.
func podInfo(p state.Pod, containers []state.Container) (map[string]string, error) {
	pid := p.PausePID()
	for _, c := range containers {
		if pid == 0 {
			pid = initPID(c)
		}
	}
	restart := map[string]workload.Policy{}
	if p.Workload != nil {
		for _, c := range p.Workload.Containers {
			restart[c.Name] = c.Restart
		}
	}
	return verbose(map[string]any{
		"restart": restart,
		"id":      p.ID, "runtimeHandler": p.Handler, "facts": p.Allocated, "status": p.Status, "supervised": p.Supervised(), "config": p.Config.V,
		"pid": pid, "runtimeSpec": sandbox.RuntimeSpec(p),
	})
}

// initPID returns the main process of a container as the node sees it, 0 where it has
// none any more.
func initPID(c state.Container) int {
	if c.Allocated.Runtime == nil || c.State() == runtimeapi.ContainerState_CONTAINER_EXITED {
		return 0
	}
	return c.Allocated.Runtime.Init.PID
}

// beingBuilt reports whether a pod sandbox has not been there yet: its request may still fail.
// With a reason it has failed, and something of it is left.
func beingBuilt(p state.Pod) bool {
	return p.Status.Phase == state.PodCreating && p.Status.Reason == ""
}

// listPods converts the pod sandboxes that match the filter; nil matches all. One that is
// being built is left out.
func listPods(pods []state.Pod, f *runtimeapi.PodSandboxFilter) []*runtimeapi.PodSandbox {
	var out []*runtimeapi.PodSandbox
	for _, p := range pods {
		cfg := p.Config.V
		if beingBuilt(p) || !hasPrefix(p.ID, f.GetId()) || f.GetState() != nil && f.State.State != podState(p) || !matches(cfg.Labels, f.GetLabelSelector()) {
			continue
		}
		out = append(out, &runtimeapi.PodSandbox{
			Id:             p.ID,
			Metadata:       cfg.Metadata,
			State:          podState(p),
			CreatedAt:      p.CreatedAt.UnixNano(),
			Labels:         cfg.Labels,
			Annotations:    cfg.Annotations,
			RuntimeHandler: p.RuntimeHandler(),
		})
	}
	return out
}

// containerInfo returns the verbose part of a container's status, as JSON. spec is its
// OCI specification, nil for none; clients of other runtimes look for it by this name.
// paused, for which the CRI has no state, is there only where it is true.
func containerInfo(c state.Container, spec json.RawMessage, checks *health.Monitor, paused bool) (map[string]string, error) {
	cfg, spec, err := withoutSecrets(c.Config.V, spec)
	if err != nil {
		return nil, fmt.Errorf("status of container %s: %w", c.ID, err)
	}
	info := map[string]any{"id": c.ID, "sandboxID": c.PodID, "facts": c.Allocated, "status": c.Status, "config": cfg, "pid": initPID(c)}
	if spec != nil {
		info["runtimeSpec"] = spec
	}
	if h, ok := checks.Of(c.ID); ok {
		info["health"] = h
	}
	if paused {
		info["paused"] = true
	}
	return verbose(info)
}

// listContainers converts the containers that match the filter; nil matches all. One
// whose creation has not succeeded is left out.
func listContainers(containers []state.Container, f *runtimeapi.ContainerFilter) []*runtimeapi.Container {
	var out []*runtimeapi.Container
	for _, c := range containers {
		cfg := c.Config.V
		if !c.Status.Created || !hasPrefix(c.ID, f.GetId()) || !hasPrefix(c.PodID, f.GetPodSandboxId()) ||
			f.GetState() != nil && f.State.State != c.State() || !matches(cfg.Labels, f.GetLabelSelector()) {
			continue
		}
		out = append(out, &runtimeapi.Container{
			Id:           c.ID,
			PodSandboxId: c.PodID,
			Metadata:     containerMetadata(c),
			Image:        imageSpec(c),
			ImageRef:     c.Allocated.ImageRef,
			ImageId:      c.Allocated.ImageID,
			State:        c.State(),
			CreatedAt:    c.CreatedAt.UnixNano(),
			Labels:       cfg.Labels,
			Annotations:  cfg.Annotations,
		})
	}
	return out
}

// containerMetadata counts what was made again in its own place as further attempts.
func containerMetadata(c state.Container) *runtimeapi.ContainerMetadata {
	m := c.Config.V.GetMetadata()
	if c.Restarts == 0 {
		return m
	}
	return &runtimeapi.ContainerMetadata{Name: m.GetName(), Attempt: c.Attempt()}
}

func podState(p state.Pod) runtimeapi.PodSandboxState {
	if p.Status.Phase == state.PodReady {
		return runtimeapi.PodSandboxState_SANDBOX_READY
	}
	return runtimeapi.PodSandboxState_SANDBOX_NOTREADY
}

// containerStatuses converts the containers that have been created.
func containerStatuses(containers []state.Container) []*runtimeapi.ContainerStatus {
	var out []*runtimeapi.ContainerStatus
	for _, c := range containers {
		if c.Status.Created {
			out = append(out, containerStatus(c))
		}
	}
	return out
}

// containerEvent converts an event (KEP-3386).
func containerEvent(e *events.Event) *runtimeapi.ContainerEventResponse {
	return &runtimeapi.ContainerEventResponse{
		ContainerId:        e.ID,
		ContainerEventType: e.Type,
		CreatedAt:          e.At.UnixNano(),
		PodSandboxStatus:   podStatus(e.Pod),
		ContainersStatuses: containerStatuses(e.Containers),
	}
}

func podStatus(p state.Pod) *runtimeapi.PodSandboxStatus {
	cfg := p.Config.V
	s := &runtimeapi.PodSandboxStatus{
		Id:             p.ID,
		Metadata:       cfg.Metadata,
		State:          podState(p),
		CreatedAt:      p.CreatedAt.UnixNano(),
		Network:        &runtimeapi.PodSandboxNetworkStatus{},
		Linux:          &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{Options: p.NamespaceOptions()}},
		Labels:         cfg.Labels,
		Annotations:    cfg.Annotations,
		RuntimeHandler: p.RuntimeHandler(),
	}
	if s.Linux.Namespaces.Options == nil {
		s.Linux.Namespaces.Options = &runtimeapi.NamespaceOption{}
	}
	for i, ip := range p.IPs() {
		if i == 0 {
			s.Network.Ip = ip.String()
			continue
		}
		s.Network.AdditionalIps = append(s.Network.AdditionalIps, &runtimeapi.PodIP{Ip: ip.String()})
	}
	return s
}

func containerStatus(c state.Container) *runtimeapi.ContainerStatus {
	cfg := c.Config.V
	s := &runtimeapi.ContainerStatus{
		Id:          c.ID,
		Metadata:    containerMetadata(c),
		State:       c.State(),
		CreatedAt:   c.CreatedAt.UnixNano(),
		StartedAt:   nanos(c.Status.StartedAt),
		FinishedAt:  nanos(c.Status.FinishedAt),
		ExitCode:    c.Status.ExitCode,
		Reason:      c.Status.Reason,
		Message:     c.Status.Message,
		Image:       imageSpec(c),
		ImageRef:    c.Allocated.ImageRef,
		ImageId:     c.Allocated.ImageID,
		Labels:      cfg.Labels,
		Annotations: cfg.Annotations,
		Mounts:      mounts(c),
		LogPath:     c.Allocated.LogPath,
		User:        &runtimeapi.ContainerUser{Linux: linuxUser(c.Allocated.User)},
		StopSignal:  criSignal(c.StopSignal()),
	}
	if !c.Resources.IsZero() {
		s.Resources = &runtimeapi.ContainerResources{Linux: c.Resources.V}
	}
	return s
}

// mounts returns the mounts that were asked for, each image volume with the image that is
// mounted (proto: ImageSpec.image_ref).
func mounts(c state.Container) []*runtimeapi.Mount {
	asked := c.Config.V.GetMounts()
	if len(c.Allocated.MountImages) == 0 {
		return asked
	}
	out := slices.Clone(asked)
	for i, m := range out {
		if id := c.Allocated.MountImages[m.ContainerPath]; id != "" && m.Image != nil {
			out[i] = proto.CloneOf(m)
			out[i].Image.ImageRef = id
		}
	}
	return out
}

// imageSpec returns the image of a container by its name: kubectl shows it.
func imageSpec(c state.Container) *runtimeapi.ImageSpec {
	asked := c.Config.V.GetImage()
	if c.Allocated.ImageName == "" || asked.GetImage() == c.Allocated.ImageName {
		return asked
	}
	return &runtimeapi.ImageSpec{
		Image: c.Allocated.ImageName, Annotations: asked.GetAnnotations(),
		UserSpecifiedImage: asked.GetUserSpecifiedImage(), RuntimeHandler: asked.GetRuntimeHandler(),
	}
}

func linuxUser(u state.User) *runtimeapi.LinuxContainerUser {
	out := &runtimeapi.LinuxContainerUser{Uid: int64(u.UID), Gid: int64(u.GID)}
	for _, g := range u.Groups {
		out.SupplementalGroups = append(out.SupplementalGroups, int64(g))
	}
	return out
}

func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func hasPrefix(id, prefix string) bool { return len(id) >= len(prefix) && id[:len(prefix)] == prefix }

func matches(labels, selector map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

func verbose(info map[string]any) (map[string]string, error) {
	text, err := json.Marshal(info)
	if err != nil {
		return nil, fmt.Errorf("encode the verbose status: %w", err)
	}
	return map[string]string{"info": string(text)}, nil
}
