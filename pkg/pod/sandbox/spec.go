package sandbox

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/subpod/subpod/pkg/ocispec"
	"github.com/subpod/subpod/pkg/state"
)

// RuntimeSpec describes a pod sandbox as the OCI specification of a pause container would:
// tools that know other runtimes look for its namespaces there. Namespaces of the node are
// left out, as in a specification.
func RuntimeSpec(p state.Pod) *specs.Spec {
	cfg, pins := p.Config.V, p.Allocated.Pins
	spec := &specs.Spec{
		Version: ocispec.Version, Hostname: cfg.GetHostname(), Annotations: cfg.GetAnnotations(),
		Linux: &specs.Linux{Sysctl: cfg.GetLinux().GetSysctls(), CgroupsPath: p.Allocated.Cgroup},
	}
	for _, ns := range []specs.LinuxNamespace{
		{Type: specs.NetworkNamespace, Path: pins.Net}, {Type: specs.IPCNamespace, Path: pins.IPC},
		{Type: specs.UTSNamespace, Path: pins.UTS}, {Type: specs.PIDNamespace, Path: pins.PID},
		{Type: specs.UserNamespace, Path: pins.User},
	} {
		if ns.Path != "" {
			spec.Linux.Namespaces = append(spec.Linux.Namespaces, ns)
		}
	}
	return spec
}
