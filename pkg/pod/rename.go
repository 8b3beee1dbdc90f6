package pod

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/pod/sandbox"
	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/workload"
)

// Rename gives a pod of "subpod run" and its container another name, by which other
// pods find it from then on. IDs, host name, log and files stay. ErrNameTaken,
// errdefs.ErrInvalidArgument, errdefs.ErrFailedPrecondition for other pods.
func (r Restarter) Rename(ctx context.Context, podID, name string) error {
	held, err := r.pod(ctx, podID, exclusive)
	if err != nil {
		return err
	}
	defer held.unlock()
	meta := held.Config.V.GetMetadata()
	if held.Config.V.GetLabels()[api.LabelMadeBy] != api.MadeByRun {
		return wrongState("rename pod sandbox %s: only what \"subpod run\" or \"subpod create\" has made can be renamed", held.ID)
	}
	if meta.GetName() == name {
		return nil
	}
	cfg := proto.Clone(held.Config.V).(*runtimeapi.PodSandboxConfig)
	cfg.Metadata.Name, cfg.Metadata.Uid = name, name
	plan, err := sandbox.NewPlan(held.ID, cfg, r.Host) // as a later server reads it
	if err != nil {
		return err
	}
	to := podName(cfg.Metadata)
	other, err := r.podNames.claim(ctx, to, held.ID)
	if err != nil {
		return err
	}
	if other != nil {
		return fmt.Errorf("%w: %s has it", ErrNameTaken, other.ID)
	}
	for _, c := range r.State.ContainersOf(held.ID) {
		if err := r.renameContainer(ctx, c.ID, meta.GetName(), name); err != nil {
			r.podNames.abort(to, held.ID)
			return err
		}
	}
	err = held.update(func(p *state.Pod) {
		p.Config = state.Msg(cfg)
		p.Workload, p.Supervision = renamed(p.Workload, p.Supervision, meta.GetName(), name)
	})
	if err != nil {
		r.podNames.abort(to, held.ID)
		return err
	}
	r.podNames.commit(to, held.ID)
	r.podNames.abort(podName(meta), held.ID)
	r.Sandboxes.Renamed(ctx, plan, held.Pod)
	return nil
}

// renameContainer renames a container that has the pod's name.
func (r Restarter) renameContainer(ctx context.Context, id, from, to string) error {
	held, err := r.container(ctx, id, exclusive)
	if err != nil {
		return ignoreNotFound(err)
	}
	defer held.unlock()
	meta := held.Config.V.GetMetadata()
	if meta.GetName() != from {
		return nil
	}
	cfg := proto.Clone(held.Config.V).(*runtimeapi.ContainerConfig)
	cfg.Metadata.Name = to
	next := containerName(held.PodID, cfg.Metadata)
	other, err := r.containerNames.claim(ctx, next, held.ID)
	if err != nil {
		return err
	}
	if other != nil && other.ID != held.ID {
		return fmt.Errorf("%w: container %s has it", errdefs.ErrAlreadyExists, other.ID)
	}
	if err := held.update(func(c *state.Container) { c.Config = state.Msg(cfg) }); err != nil {
		r.containerNames.abort(next, held.ID)
		return err
	}
	r.containerNames.commit(next, held.ID)
	r.containerNames.abort(containerName(held.PodID, meta), held.ID)
	return nil
}

// renamed returns specification and status with another name of a container.
func renamed(spec *workload.Spec, st workload.Status, from, to string) (*workload.Spec, workload.Status) {
	if spec == nil {
		return nil, st
	}
	next := *spec
	next.Containers = append([]workload.Container(nil), spec.Containers...)
	for i := range next.Containers {
		if c := &next.Containers[i]; c.Name == from {
			c.Name = to
		}
	}
	progress := st.Containers[from]
	st = st.With(to, progress)
	delete(st.Containers, from)
	return &next, st
}
