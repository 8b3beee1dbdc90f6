package container

import (
	"fmt"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/ocispec"
	"github.com/subpod/subpod/pkg/state"
)

// validateNamespaces checks the namespaces that a container asks for against those
// that its pod sandbox has.
func validateNamespaces(p state.Pod, cfg *runtimeapi.ContainerConfig, target *state.Container) error {
	pod := p.Config.V.GetLinux().GetSecurityContext().GetNamespaceOptions()
	want := cfg.GetLinux().GetSecurityContext().GetNamespaceOptions()
	if err := sharedNamespaces(pod, want); err != nil {
		return invalid("container %q: %w", cfg.Metadata.Name, err)
	}
	// POD is the zero value: without options nothing was asked for.
	if want != nil && want.Pid == runtimeapi.NamespaceMode_POD && pod.GetPid() != runtimeapi.NamespaceMode_POD {
		return invalid("container %q asks for the pod's PID namespace, and the pod sandbox was not made with one", cfg.Metadata.Name)
	}
	if want.GetPid() != runtimeapi.NamespaceMode_TARGET {
		return nil
	}
	if target == nil || target.PodID != p.ID {
		return invalid("target container %q is not in the pod sandbox", want.GetTargetId())
	}
	s := target.State()
	if s != runtimeapi.ContainerState_CONTAINER_RUNNING && s != runtimeapi.ContainerState_CONTAINER_CREATED || target.Allocated.Runtime == nil {
		return fmt.Errorf("%w: target container %s is not running", errdefs.ErrFailedPrecondition, target.ID)
	}
	return nil
}

// sharedNamespaces checks that a container asks for the network and IPC namespaces
// of its pod sandbox. POD is the zero value, so it may also mean that nothing was
// asked for.
func sharedNamespaces(pod, container *runtimeapi.NamespaceOption) error {
	for _, n := range []struct {
		what           string
		pod, container runtimeapi.NamespaceMode
	}{
		{"network", pod.GetNetwork(), container.GetNetwork()},
		{"ipc", pod.GetIpc(), container.GetIpc()},
	} {
		if n.container != n.pod && n.container != runtimeapi.NamespaceMode_POD {
			return fmt.Errorf("%s namespace mode %s, and its pod sandbox has %s: containers share what the pod sandbox has", n.what, n.container, n.pod)
		}
	}
	return nil
}

// namespaces returns the namespaces that the container joins.
func (b *Builder) namespaces(plan Plan, p state.Pod) ocispec.Namespaces {
	pins := p.Allocated.Pins
	ns := ocispec.Namespaces{Net: pins.Net, IPC: pins.IPC, UTS: pins.UTS, User: pins.User}
	if p.Config.V.GetLinux().GetSecurityContext().GetNamespaceOptions().GetNetwork() == runtimeapi.NamespaceMode_NODE {
		ns.Net = b.NodeNetNS
	}
	switch plan.Config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetPid() {
	case runtimeapi.NamespaceMode_POD:
		ns.PID = pins.PID
	case runtimeapi.NamespaceMode_NODE:
		ns.PID = ocispec.PIDNode
	case runtimeapi.NamespaceMode_TARGET:
		ns.PID = fmt.Sprintf("/proc/%d/ns/pid", plan.target.Allocated.Runtime.Init.PID)
	}
	return ns
}
