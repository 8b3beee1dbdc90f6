package nri

import (
	"context"
	"maps"
	"slices"

	"github.com/containerd/nri/pkg/adaptation"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/ocispec"
	"github.com/subpod/subpod/pkg/state"
)

// Adjust asks plugins what they want to be different about a container that is about to be
// created; nil where nothing. Container is to be called with ContainerCreated or
// ContainerUndone afterwards.
func (n *Plugins) Adjust(ctx context.Context, p state.Pod, c state.Container, spec *specs.Spec) (*ocispec.Adjustment, error) {
	var resp *adaptation.CreateContainerResponse
	var asked *adaptation.Container
	err := n.relayNew(ctx, func() { n.creating[c.ID] = creation{c, spec} }, func(ctx context.Context) (err error) {
		asked = containerMessage(c, spec)
		resp, err = n.runtime.CreateContainer(ctx, &adaptation.CreateContainerRequest{Pod: podMessage(p), Container: asked})
		return err
	})
	if err != nil {
		return nil, named(err)
	}
	n.limit(ctx, resp.GetUpdate())
	n.evict(ctx, resp.GetEvict())
	return adjustment(resp.GetAdjust(), spec, asked)
}

// Limits returns the change of a container's limits as plugins have changed it.
func (n *Plugins) Limits(ctx context.Context, p state.Pod, c state.Container, change *runtimeapi.LinuxContainerResources) (*runtimeapi.LinuxContainerResources, error) {
	if change == nil {
		return nil, nil
	}
	var resp *adaptation.UpdateContainerResponse
	err := n.relay(ctx, func(ctx context.Context) (err error) {
		resp, err = n.runtime.UpdateContainer(ctx, &adaptation.UpdateContainerRequest{
			Pod: podMessage(p), Container: n.message(c), LinuxResources: fromCRI(change),
		})
		return err
	})
	if err != nil {
		return nil, named(err)
	}
	var others []*adaptation.ContainerUpdate
	for _, u := range resp.GetUpdate() {
		if u.GetContainerId() == c.ID {
			change = overlay(change, toCRI(u.GetLinux().GetResources()))
		} else {
			others = append(others, u)
		}
	}
	n.limit(ctx, others)
	n.evict(ctx, resp.GetEvict())
	return change, nil
}

// limit sets the limits of other containers that plugins ask for, and returns those that
// could not be.
func (n *Plugins) limit(ctx context.Context, updates []*adaptation.ContainerUpdate) (failed []*adaptation.ContainerUpdate) {
	if len(updates) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), changeTimeout)
	defer cancel()
	for _, u := range updates {
		if u.GetContainerId() == "" || u.GetLinux().GetResources() == nil {
			continue
		}
		if err := n.options.Limit(ctx, u.ContainerId, toCRI(u.Linux.Resources)); err != nil {
			n.options.Log.Warn("a limit that an NRI plugin asks for could not be set", "container", u.ContainerId, "error", err)
			if !u.IgnoreFailure {
				failed = append(failed, u)
			}
		}
	}
	return failed
}

// evict ends containers, while the request that it was asked for in goes on.
func (n *Plugins) evict(ctx context.Context, list []*adaptation.ContainerEviction) {
	for _, e := range list {
		go func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), changeTimeout)
			defer cancel()
			n.options.Log.Info("an NRI plugin ends a container", "container", e.GetContainerId(), "reason", cut(e.GetReason()))
			if err := n.options.Kill(ctx, e.GetContainerId()); err != nil {
				n.options.Log.Warn("a container that an NRI plugin wants to end is still there", "container", e.GetContainerId(), "error", err)
			}
		}()
	}
}

// updateContainers sets limits that a plugin asks for by itself.
func (n *Plugins) updateContainers(ctx context.Context, updates []*adaptation.ContainerUpdate) ([]*adaptation.ContainerUpdate, error) {
	return n.limit(ctx, updates), nil
}

// synchronize tells a new plugin what there is.
func (n *Plugins) synchronize(ctx context.Context, tell adaptation.SyncCB) error {
	if !n.started.Swap(true) { // Start's own, for plugins that it has started: none
		_, err := tell(ctx, nil, nil)
		return err
	}
	// Read before the records: what is taken out of it in between has a record.
	n.mu.Lock()
	creating, built := slices.Collect(maps.Values(n.creating)), maps.Clone(n.built)
	n.mu.Unlock()
	pods, containers := n.options.List()
	podMessages, messages := []*adaptation.PodSandbox{}, []*adaptation.Container{}
	for _, p := range pods {
		if p.Status.Phase != state.PodCreating || built[p.ID] {
			podMessages = append(podMessages, podMessage(p))
		}
	}
	listed := map[string]bool{}
	for _, c := range containers {
		if s := c.State(); s == runtimeapi.ContainerState_CONTAINER_CREATED || s == runtimeapi.ContainerState_CONTAINER_RUNNING {
			listed[c.ID] = true
			messages = append(messages, n.message(c))
		}
	}
	for _, c := range creating {
		if !listed[c.container.ID] {
			messages = append(messages, containerMessage(c.container, c.spec))
		}
	}
	updates, err := tell(ctx, podMessages, messages)
	if err != nil {
		return err
	}
	// Those wait for containers' locks, whose holders may wait for this registration.
	go n.limit(ctx, updates)
	return nil
}
