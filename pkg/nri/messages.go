package nri

import (
	"strings"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/state"
)

// podMessage describes a pod sandbox.
func podMessage(p state.Pod) *adaptation.PodSandbox {
	cfg, pins := p.Config.V, p.Allocated.Pins
	linux := cfg.GetLinux()
	overhead, resources := p.Overhead.V, p.Resources.V
	if overhead == nil {
		overhead = linux.GetOverhead()
	}
	if resources == nil {
		resources = linux.GetResources()
	}
	out := &adaptation.PodSandbox{
		Id: p.ID, Name: cfg.GetMetadata().GetName(), Uid: cfg.GetMetadata().GetUid(), Namespace: cfg.GetMetadata().GetNamespace(),
		Labels: cfg.GetLabels(), Annotations: cfg.GetAnnotations(), RuntimeHandler: p.RuntimeHandler(), Pid: uint32(p.PausePID()),
		Linux: &adaptation.LinuxPodSandbox{
			CgroupParent: linux.GetCgroupParent(), CgroupsPath: p.Allocated.Cgroup, PodOverhead: fromCRI(overhead), PodResources: fromCRI(resources),
		},
	}
	for _, ns := range []specs.LinuxNamespace{
		{Type: specs.NetworkNamespace, Path: pins.Net}, {Type: specs.IPCNamespace, Path: pins.IPC},
		{Type: specs.UTSNamespace, Path: pins.UTS}, {Type: specs.PIDNamespace, Path: pins.PID},
		{Type: specs.UserNamespace, Path: pins.User},
	} {
		if ns.Path != "" {
			out.Linux.Namespaces = append(out.Linux.Namespaces, &api.LinuxNamespace{Type: string(ns.Type), Path: ns.Path})
		}
	}
	for _, ip := range p.IPs() {
		out.Ips = append(out.Ips, ip.String())
	}
	return out
}

// message describes a container that has been created.
func (n *Plugins) message(c state.Container) *adaptation.Container {
	return containerMessage(c, n.options.Spec(c))
}

// containerMessage describes a container; spec may be nil.
func containerMessage(c state.Container, spec *specs.Spec) *adaptation.Container {
	cfg := c.Config.V
	out := &adaptation.Container{
		Id: c.ID, PodSandboxId: c.PodID, Name: cfg.GetMetadata().GetName(), State: stateOf(c), Labels: cfg.GetLabels(), Annotations: cfg.GetAnnotations(),
		CreatedAt: c.CreatedAt.UnixNano(), ExitCode: c.Status.ExitCode, StatusReason: c.Status.Reason, StatusMessage: c.Status.Message,
		User:  &api.User{Uid: c.Allocated.User.UID, Gid: c.Allocated.User.GID, AdditionalGids: c.Allocated.User.Groups},
		Image: &api.Image{Name: c.Allocated.ImageName, ConfigDigest: "sha256:" + c.Allocated.ImageID}, Linux: &adaptation.LinuxContainer{},
	}
	if _, digest, ok := strings.Cut(c.Allocated.ImageRef, "@"); ok {
		out.Image.Digest = digest
	}
	if t := c.Status.StartedAt; !t.IsZero() {
		out.StartedAt = t.UnixNano()
	}
	if t := c.Status.FinishedAt; !t.IsZero() {
		out.FinishedAt = t.UnixNano()
	} else if c.Allocated.Runtime != nil {
		out.Pid = uint32(c.Allocated.Runtime.Init.PID)
	}
	for _, d := range cfg.GetCDIDevices() {
		out.CDIDevices = append(out.CDIDevices, &adaptation.CDIDevice{Name: d.GetName()})
	}
	if profile := cfg.GetLinux().GetSecurityContext().GetSeccomp(); profile != nil {
		out.Linux.SeccompProfile = &api.SecurityProfile{ProfileType: api.SecurityProfile_ProfileType(profile.GetProfileType()), LocalhostRef: profile.GetLocalhostRef()}
	}
	describe(out, spec)
	return out
}

// describe adds what the OCI specification says.
func describe(out *adaptation.Container, spec *specs.Spec) {
	if spec == nil {
		return
	}
	out.Mounts, out.Hooks = api.FromOCIMounts(spec.Mounts), api.FromOCIHooks(spec.Hooks)
	if p := spec.Process; p != nil {
		out.Args, out.Env = p.Args, p.Env
		out.User = &api.User{Uid: p.User.UID, Gid: p.User.GID, AdditionalGids: p.User.AdditionalGids}
		if p.OOMScoreAdj != nil {
			out.Linux.OomScoreAdj = api.Int(*p.OOMScoreAdj)
		}
		for _, l := range p.Rlimits {
			out.Rlimits = append(out.Rlimits, &adaptation.POSIXRlimit{Type: l.Type, Hard: l.Hard, Soft: l.Soft})
		}
	}
	if l := spec.Linux; l != nil {
		out.Linux.Namespaces, out.Linux.Devices = api.FromOCILinuxNamespaces(l.Namespaces), api.FromOCILinuxDevices(l.Devices)
		out.Linux.Resources, out.Linux.CgroupsPath = api.FromOCILinuxResources(l.Resources, nil), l.CgroupsPath
		if l.Seccomp != nil {
			out.Linux.SeccompPolicy = api.FromOCILinuxSeccomp(l.Seccomp)
		}
	}
}

func stateOf(c state.Container) adaptation.ContainerState {
	switch c.State() {
	case runtimeapi.ContainerState_CONTAINER_CREATED:
		return api.ContainerState_CONTAINER_CREATED
	case runtimeapi.ContainerState_CONTAINER_RUNNING:
		return api.ContainerState_CONTAINER_RUNNING
	case runtimeapi.ContainerState_CONTAINER_EXITED:
		return api.ContainerState_CONTAINER_STOPPED
	}
	return api.ContainerState_CONTAINER_UNKNOWN
}

// fromCRI translates limits; what is not set is left out.
func fromCRI(r *runtimeapi.LinuxContainerResources) *adaptation.LinuxResources {
	if r == nil {
		return nil
	}
	out := &adaptation.LinuxResources{Cpu: &adaptation.LinuxCPU{Cpus: r.CpusetCpus, Mems: r.CpusetMems}, Memory: &adaptation.LinuxMemory{}, Unified: r.Unified}
	if r.CpuShares > 0 {
		out.Cpu.Shares = api.UInt64(uint64(r.CpuShares))
	}
	if r.CpuQuota != 0 {
		out.Cpu.Quota = api.Int64(r.CpuQuota)
	}
	if r.CpuPeriod > 0 {
		out.Cpu.Period = api.UInt64(uint64(r.CpuPeriod))
	}
	if r.MemoryLimitInBytes != 0 {
		out.Memory.Limit = api.Int64(r.MemoryLimitInBytes)
	}
	if r.MemorySwapLimitInBytes != 0 {
		out.Memory.Swap = api.Int64(r.MemorySwapLimitInBytes)
	}
	for _, h := range r.HugepageLimits {
		out.HugepageLimits = append(out.HugepageLimits, &adaptation.HugepageLimit{PageSize: h.PageSize, Limit: h.Limit})
	}
	return out
}

// toCRI translates limits back; nil for none.
func toCRI(r *adaptation.LinuxResources) *runtimeapi.LinuxContainerResources {
	if r == nil {
		return nil
	}
	out := &runtimeapi.LinuxContainerResources{
		CpuShares: int64(r.GetCpu().GetShares().GetValue()), CpuQuota: r.GetCpu().GetQuota().GetValue(), CpuPeriod: int64(r.GetCpu().GetPeriod().GetValue()),
		CpusetCpus: r.GetCpu().GetCpus(), CpusetMems: r.GetCpu().GetMems(),
		MemoryLimitInBytes: r.GetMemory().GetLimit().GetValue(), MemorySwapLimitInBytes: r.GetMemory().GetSwap().GetValue(),
	}
	for _, h := range r.GetHugepageLimits() {
		out.HugepageLimits = append(out.HugepageLimits, &runtimeapi.HugepageLimit{PageSize: h.GetPageSize(), Limit: h.GetLimit()})
	}
	unified := map[string]string{}
	for k, v := range r.GetUnified() {
		unified[k] = v
	}
	if p := r.GetPids(); p != nil {
		unified["pids.max"] = pidsMax(p.GetLimit())
	}
	if len(unified) > 0 {
		out.Unified = unified
	}
	return out
}

// overlay lays limits over others.
func overlay(r, over *runtimeapi.LinuxContainerResources) *runtimeapi.LinuxContainerResources {
	if over == nil {
		return r
	}
	out := proto.CloneOf(r)
	if len(over.HugepageLimits) > 0 {
		out.HugepageLimits = nil
	}
	proto.Merge(out, over)
	return out
}
