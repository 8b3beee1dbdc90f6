package container

import (
	"slices"
	"strconv"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/subpath"
)

// mapIDs makes those ID-mapped mounts that want the mappings of the pod's own user
// namespace, as the kubelet's all do, and gives the OCI runtime plain ones of them. crun
// 1.8 takes the user namespace of a process that may not have joined the pod's yet
// (mount_setattr: EINVAL, now and then), and runc 1.1 leaves the mappings out. Others are
// only tried: the OCI runtime makes them. It changes mounts.
func (b *Builder) mapIDs(userNS string, p state.Pod, id string, mounts []*runtimeapi.Mount) error {
	if userNS == "" {
		return nil // ocispec refuses them
	}
	pod := p.Config.V.GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions()
	for i, m := range mounts {
		if len(m.UidMappings) == 0 || len(m.GidMappings) == 0 {
			continue
		}
		tree, err := subpath.MapIDs(m.HostPath, userNS)
		if err != nil {
			return invalid("mount on %s: %w", m.ContainerPath, err)
		}
		defer tree.Close()
		if !sameIDs(m.UidMappings, pod.GetUids()) || !sameIDs(m.GidMappings, pod.GetGids()) {
			continue
		}
		if m.HostPath, err = subpath.Attach(b.subPathDir(id), "mapped"+strconv.Itoa(i), tree); err != nil {
			return invalid("mount on %s: %w", m.ContainerPath, err)
		}
		m.UidMappings, m.GidMappings = nil, nil // the mount has them
	}
	return nil
}

func sameIDs(a, b []*runtimeapi.IDMapping) bool {
	return slices.EqualFunc(a, b, func(x, y *runtimeapi.IDMapping) bool { return proto.Equal(x, y) })
}
