package ocispec

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/idmap"
)

// namespaces joins the pod's and makes the container's own: mount and cgroup
// always, PID unless another one is given. The host name belongs to the UTS
// namespace, which is the pod's.
func (b *builder) namespaces() error {
	n := b.Namespaces
	list := []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.CgroupNamespace}}
	switch n.PID {
	case "":
		list = append(list, specs.LinuxNamespace{Type: specs.PIDNamespace})
	case PIDNode:
	default:
		list = append(list, specs.LinuxNamespace{Type: specs.PIDNamespace, Path: n.PID})
	}
	for _, j := range []struct {
		kind specs.LinuxNamespaceType
		path string
	}{{specs.NetworkNamespace, n.Net}, {specs.IPCNamespace, n.IPC}, {specs.UTSNamespace, n.UTS}, {specs.UserNamespace, n.User}} {
		if j.path != "" {
			list = append(list, specs.LinuxNamespace{Type: j.kind, Path: j.path})
		}
	}
	b.spec.Linux.Namespaces = list
	if n.User == "" {
		return nil
	}
	// OCI runtimes want the mappings of a namespace that they join, too: they find
	// the IDs of its root in them.
	opts := b.podUserns()
	uids, gids := mappings(opts.GetUids()), mappings(opts.GetGids())
	if len(uids) == 0 || len(gids) == 0 {
		return invalid("the pod has a user namespace but its userns_options have no mappings")
	}
	if !mapped(uids, 0) || !mapped(gids, 0) {
		return invalid("the pod's user namespace does not map ID 0")
	}
	b.spec.Linux.UIDMappings, b.spec.Linux.GIDMappings = specMappings(uids), specMappings(gids)
	return nil
}

// gids are the group IDs of the container's user namespace.
func (b *builder) gids() []idmap.Map {
	if b.Namespaces.User == "" {
		return b.Host.GIDMap
	}
	return mappings(b.podUserns().GetGids())
}

func (b *builder) podUserns() *runtimeapi.UserNamespace {
	return b.Pod.GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions()
}

func mappings(in []*runtimeapi.IDMapping) []idmap.Map {
	var out []idmap.Map
	for _, m := range in {
		out = append(out, idmap.Map{Container: m.GetContainerId(), Host: m.GetHostId(), Size: m.GetLength()})
	}
	return out
}

func specMappings(in []idmap.Map) []specs.LinuxIDMapping {
	var out []specs.LinuxIDMapping
	for _, m := range in {
		out = append(out, specs.LinuxIDMapping{ContainerID: m.Container, HostID: m.Host, Size: m.Size})
	}
	return out
}

// ownsNet, ownsPID and ownsIPC report whether the file systems that show a
// namespace (sysfs, proc, mqueue) can be mounted afresh: the kernel demands that
// the container's user namespace owns it.
func (b *builder) ownsNet() bool {
	return b.Namespaces.Net != "" && b.Host.owned(b.Namespaces.Net, b.Namespaces.User)
}

func (b *builder) ownsPID() bool {
	switch path := b.Namespaces.PID; path {
	case "":
		return true
	case PIDNode:
		return b.Host.owned(ownNS("pid"), b.Namespaces.User)
	default:
		return b.Host.owned(path, b.Namespaces.User)
	}
}

func (b *builder) ownsIPC() bool {
	path := b.Namespaces.IPC
	if path == "" {
		path = ownNS("ipc")
	}
	return b.Host.owned(path, b.Namespaces.User)
}
