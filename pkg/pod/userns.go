package pod

import (
	"fmt"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/pkg/idmap"
	"github.com/subpod/subpod/pkg/state"
)

// podUserNS returns the mappings of the pod's own user namespace, nil when it
// has none. "Host" IDs are those of the node's user namespace, which is what a
// kubelet inside the node means by them.
func (r *Runtime) podUserNS(cfg *runtimeapi.PodSandboxConfig) (*netns.IDMaps, error) {
	opts := state.NamespaceOptions(cfg).GetUsernsOptions()
	if opts == nil || state.OnNode(opts.Mode) {
		return nil, nil
	}
	if opts.Mode != runtimeapi.NamespaceMode_POD {
		return nil, fmt.Errorf("%w: user namespace mode %s is neither POD nor NODE", ErrInvalid, opts.Mode)
	}
	if len(opts.Uids) != 1 || len(opts.Gids) != 1 {
		return nil, fmt.Errorf("%w: a user namespace of its own needs one UID and one GID mapping, got %d and %d", ErrInvalid, len(opts.Uids), len(opts.Gids))
	}
	maps := &netns.IDMaps{}
	for _, m := range []struct {
		what string
		in   *runtimeapi.IDMapping
		out  *[]idmap.Map
		node []idmap.Map
	}{
		{"UID", opts.Uids[0], &maps.UIDs, r.UIDs},
		{"GID", opts.Gids[0], &maps.GIDs, r.GIDs},
	} {
		if m.in.Length == 0 || m.in.ContainerId != 0 {
			return nil, fmt.Errorf("%w: the %s mapping of the user namespace must begin at container ID 0 and have a length", ErrInvalid, m.what)
		}
		if !idmap.Covered(m.node, m.in.HostId, m.in.Length) {
			return nil, fmt.Errorf("%w: the %s range %d+%d of the user namespace lies outside the node's own IDs; give the user more subordinate IDs (usermod --add-subuids, --add-subgids)", ErrInvalid, m.what, m.in.HostId, m.in.Length)
		}
		*m.out = []idmap.Map{{Container: m.in.ContainerId, Host: m.in.HostId, Size: m.in.Length}}
	}
	return maps, nil
}

// storageMaps are the mappings of the pod's own user namespace for its
// containers' root file systems.
func storageMaps(cfg *runtimeapi.PodSandboxConfig) (uids, gids []idmap.Map) {
	opts := state.NamespaceOptions(cfg).GetUsernsOptions()
	if opts.GetMode() != runtimeapi.NamespaceMode_POD {
		return nil, nil
	}
	for _, m := range opts.GetUids() {
		uids = append(uids, idmap.Map{Container: m.ContainerId, Host: m.HostId, Size: m.Length})
	}
	for _, m := range opts.GetGids() {
		gids = append(gids, idmap.Map{Container: m.ContainerId, Host: m.HostId, Size: m.Length})
	}
	return uids, gids
}
