package cri

import (
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/cgroup"
	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/stats"
)

// This file converts records to what package stats measures.

// measurablePods returns the ready pod sandboxes that are wanted.
func measurablePods(s *state.Store, delegation cgroup.Delegation, want func(state.Pod) bool) []stats.Pod {
	var list []stats.Pod
	for _, p := range s.Pods() {
		if p.Status.Phase == state.PodReady && want(p) {
			list = append(list, measurablePod(p, s.ContainersOf(p.ID), delegation))
		}
	}
	return list
}

func measurablePod(p state.Pod, containers []state.Container, delegation cgroup.Delegation) stats.Pod {
	cfg := p.Config.V
	out := stats.Pod{
		Attributes: &runtimeapi.PodSandboxAttributes{Id: p.ID, Metadata: cfg.Metadata, Labels: cfg.Labels, Annotations: cfg.Annotations},
		NetNS:      p.Allocated.Pins.Net,
	}
	if group, err := delegation.PodPath(cfg.GetLinux().GetCgroupParent(), p.ID); err == nil {
		out.Cgroup = group.Dir
	}
	if p.Allocated.Network != nil {
		out.Interface = p.Allocated.Network.Interface
	}
	for _, c := range containers {
		if c.State() == runtimeapi.ContainerState_CONTAINER_RUNNING {
			out.Containers = append(out.Containers, measurable(c))
		}
	}
	return out
}

func measurable(c state.Container) stats.Container {
	cfg := c.Config.V
	out := stats.Container{
		Attributes: &runtimeapi.ContainerAttributes{Id: c.ID, Metadata: cfg.Metadata, Labels: cfg.Labels, Annotations: cfg.Annotations},
		Cgroup:     c.Allocated.Cgroup,
		Image:      imageSpec(c).GetImage(),
		StartedAt:  c.Status.StartedAt,
		Resources:  c.Resources.V,
	}
	if c.Allocated.Runtime != nil {
		out.Init = c.Allocated.Runtime.Init
	}
	return out
}

// measurableContainers returns the running containers that match the filter; nil
// matches all.
func measurableContainers(containers []state.Container, f *runtimeapi.ContainerStatsFilter) []stats.Container {
	var list []stats.Container
	for _, c := range containers {
		if c.State() == runtimeapi.ContainerState_CONTAINER_RUNNING && hasPrefix(c.ID, f.GetId()) &&
			hasPrefix(c.PodID, f.GetPodSandboxId()) && matches(c.Config.V.Labels, f.GetLabelSelector()) {
			list = append(list, measurable(c))
		}
	}
	return list
}
