package container

import (
	"context"
	"fmt"
	"slices"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/ocispec"
	"github.com/subpod/subpod/pkg/state"
)

// adjust asks plugins about a container, and builds its specification once more where they
// want something to be different. What they name of the host is the user's, as what a request
// names.
func adjust(ctx context.Context, b *Builder, in ocispec.Input, out ocispec.Output, plan Plan, p state.Pod, c *state.Container) (ocispec.Output, error) {
	a, err := b.Adjust(ctx, p, *c, out.Spec)
	if err != nil || a == nil {
		return out, err
	}
	plan.firstMount = len(plan.Config.Mounts)
	plan.Config = &runtimeapi.ContainerConfig{Mounts: a.Mounts, Devices: a.Devices}
	plan.subPaths, plan.imageMounts = nil, nil
	if a.Mounts, err = b.resolveMounts(ctx, plan, c.ID); err != nil {
		return out, fmt.Errorf("adjustment by a plugin: %w", err)
	}
	b.recordSources(plan, c, a.Mounts)
	if _, err := b.hostFiles(c.ID, plan.Config); err != nil {
		return out, fmt.Errorf("adjustment by a plugin: %w", err)
	}
	in.Adjust = a
	adjusted, err := ocispec.Build(in)
	if err != nil {
		return out, fmt.Errorf("adjustment by a plugin: %w", err)
	}
	adjusted.Warnings = slices.Concat(a.LeftOut, adjusted.Warnings)
	if a.Resources != nil {
		c.Resources = state.Msg(a.Limits(c.Config.V.GetLinux().GetResources()))
	}
	return adjusted, nil
}
