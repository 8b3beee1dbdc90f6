package sandbox

import (
	"cmp"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/ocispec"
	"github.com/subpod/subpod/pkg/state"
)

// Limit sets the limits of the pod as a whole that the record has: those that
// UpdatePodSandboxResources last asked for, else those of the request. A cgroup that
// cgroup_parent names belongs to who made it, and is left alone. What cannot be set without
// its controller is returned in words. Idempotent. errdefs.ErrInvalidArgument.
func (b *Builder) Limit(p state.Pod) (leftOut []string, err error) {
	if p.Allocated.Cgroup == "" {
		return nil, nil
	}
	linux := p.Config.V.GetLinux()
	limits, leftOut, err := ocispec.Resources(addLimits(cmp.Or(p.Resources.V, linux.GetResources()), cmp.Or(p.Overhead.V, linux.GetOverhead())), b.Cgroup)
	if err != nil {
		return nil, err
	}
	group, err := b.Cgroup.PodPath("", p.ID)
	if err != nil {
		return nil, err
	}
	return leftOut, group.Limit(limits)
}

// addLimits adds what a pod costs by itself to the limits of its containers. What has no
// limit gets none.
func addLimits(r, overhead *runtimeapi.LinuxContainerResources) *runtimeapi.LinuxContainerResources {
	if r == nil || overhead == nil {
		return r
	}
	out := proto.CloneOf(r)
	if out.CpuShares > 0 {
		out.CpuShares += max(overhead.CpuShares, 0)
	}
	if out.CpuQuota > 0 && overhead.CpuQuota > 0 {
		const usual = 100_000
		out.CpuQuota += overhead.CpuQuota * cmp.Or(r.CpuPeriod, usual) / cmp.Or(overhead.CpuPeriod, usual)
	}
	if out.MemoryLimitInBytes > 0 {
		out.MemoryLimitInBytes += max(overhead.MemoryLimitInBytes, 0)
		if out.MemorySwapLimitInBytes > 0 {
			out.MemorySwapLimitInBytes += max(overhead.MemoryLimitInBytes, 0)
		}
	}
	return out
}
