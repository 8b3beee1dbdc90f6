package sandbox

import (
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/pkg/idmap"
)

// parseUserNS returns the mappings of the pod's own user namespace, nil when it
// has none. "Host" IDs are those of the node's user namespace, which is what a
// kubelet inside the node means by them.
// A kubelet gives one range; only subpod's own commands give several.
func parseUserNS(opts *runtimeapi.UserNamespace, several bool, host Host) (*netns.IDMaps, error) {
	if opts == nil || onNode(opts.Mode) {
		return nil, nil
	}
	if opts.Mode != runtimeapi.NamespaceMode_POD {
		return nil, invalid("user namespace mode %s is neither POD nor NODE", opts.Mode)
	}
	if !several && (len(opts.Uids) != 1 || len(opts.Gids) != 1) {
		return nil, invalid("a user namespace of its own needs one UID and one GID mapping, got %d and %d", len(opts.Uids), len(opts.Gids))
	}
	maps := &netns.IDMaps{}
	var err error
	if maps.UIDs, err = parseIDs("UID", opts.Uids, host.UIDs); err != nil {
		return nil, err
	}
	maps.GIDs, err = parseIDs("GID", opts.Gids, host.GIDs)
	return maps, err
}

// maxMappings bounds the ranges of one user namespace: the kernel takes 340.
const maxMappings = 340

// parseIDs checks mappings, whose container IDs must rise from 0 on, and which name no ID
// of the node twice.
func parseIDs(what string, in []*runtimeapi.IDMapping, node []idmap.Map) ([]idmap.Map, error) {
	if len(in) == 0 || len(in) > maxMappings {
		return nil, invalid("a user namespace of its own has %d %s mappings; at least 1 and at most %d are needed", len(in), what, maxMappings)
	}
	var out []idmap.Map
	var next uint64
	for _, m := range in {
		if m.Length == 0 || len(out) == 0 && m.ContainerId != 0 || uint64(m.ContainerId) < next {
			return nil, invalid("the %s mapping of the user namespace must begin at container ID 0 or after the one before it, and have a length", what)
		}
		if !idmap.Covered(node, m.HostId, m.Length) {
			return nil, invalid("the %s range %d+%d of the user namespace lies outside the node's own IDs; give the user more subordinate IDs (usermod --add-subuids, --add-subgids)", what, m.HostId, m.Length)
		}
		for _, other := range out {
			if uint64(m.HostId) < uint64(other.Host)+uint64(other.Size) && uint64(other.Host) < uint64(m.HostId)+uint64(m.Length) {
				return nil, invalid("the %s ranges %d+%d and %d+%d of the user namespace overlap", what, other.Host, other.Size, m.HostId, m.Length)
			}
		}
		out = append(out, idmap.Map{Container: m.ContainerId, Host: m.HostId, Size: m.Length})
		next = uint64(m.ContainerId) + uint64(m.Length)
	}
	return out, nil
}
