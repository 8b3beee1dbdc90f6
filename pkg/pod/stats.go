package pod

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/stats"
)

// ContainerStats measures one container, also one that does not run.
// state.ErrNotFound.
func (r *Runtime) ContainerStats(ctx context.Context, id string) (*runtimeapi.ContainerStats, error) {
	c, err := r.State.Container(id)
	if err != nil {
		return nil, err
	}
	return r.Stats.Containers(ctx, []stats.Container{measurable(c)})[0], nil
}

// ListContainerStats measures the running containers that the filter lets
// through; nil lets all through.
func (r *Runtime) ListContainerStats(ctx context.Context, f *runtimeapi.ContainerStatsFilter) []*runtimeapi.ContainerStats {
	var list []stats.Container
	for _, c := range r.State.Containers() {
		if c.State() == runtimeapi.ContainerState_CONTAINER_RUNNING && hasPrefix(c.ID, f.GetId()) &&
			hasPrefix(c.PodID, f.GetPodSandboxId()) && matches(c.Config.V.Labels, f.GetLabelSelector()) {
			list = append(list, measurable(c))
		}
	}
	return r.Stats.Containers(ctx, list)
}

// PodStats measures one pod sandbox. state.ErrNotFound.
func (r *Runtime) PodStats(ctx context.Context, id string) (*runtimeapi.PodSandboxStats, error) {
	p, err := r.State.Pod(id)
	if err != nil {
		return nil, err
	}
	return r.Stats.Pods(ctx, []stats.Pod{r.measurablePod(p)})[0], nil
}

// ListPodStats measures the ready pod sandboxes that the filter lets through;
// nil lets all through.
func (r *Runtime) ListPodStats(ctx context.Context, f *runtimeapi.PodSandboxStatsFilter) []*runtimeapi.PodSandboxStats {
	return r.Stats.Pods(ctx, r.measurablePods(func(p state.Pod) bool {
		return hasPrefix(p.ID, f.GetId()) && matches(p.Config.V.Labels, f.GetLabelSelector())
	}))
}

// Metrics measures all ready pod sandboxes in the names of cAdvisor.
func (r *Runtime) Metrics(ctx context.Context) []*runtimeapi.PodSandboxMetrics {
	return r.Stats.Metrics(ctx, r.measurablePods(func(state.Pod) bool { return true }))
}

func (r *Runtime) measurablePods(want func(state.Pod) bool) []stats.Pod {
	var list []stats.Pod
	for _, p := range r.State.Pods() {
		if p.Status.Phase == state.PodReady && want(p) {
			list = append(list, r.measurablePod(p))
		}
	}
	return list
}

func (r *Runtime) measurablePod(p state.Pod) stats.Pod {
	cfg := p.Config.V
	out := stats.Pod{
		Attributes: &runtimeapi.PodSandboxAttributes{Id: p.ID, Metadata: cfg.Metadata, Labels: cfg.Labels, Annotations: cfg.Annotations},
		NetNS:      p.Allocated.Pins.Net,
	}
	if group, err := r.podCgroup(p); err == nil {
		out.Cgroup = group.Dir
	}
	if p.Allocated.Network != nil {
		out.Interface = p.Allocated.Network.Interface
	}
	for _, c := range r.State.ContainersOf(p.ID) {
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
		Image:      cfg.GetImage().GetUserSpecifiedImage(),
		StartedAt:  c.Status.StartedAt,
		Resources:  c.Resources.V,
	}
	if out.Image == "" {
		out.Image = cfg.GetImage().GetImage()
	}
	if c.Allocated.Runtime != nil {
		out.Init = c.Allocated.Runtime.Init
	}
	return out
}
