package sandbox

import (
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/pkg/idmap"
)

// parseUserNS returns the mappings of the pod's own user namespace, nil when it
// has none. "Host" IDs are those of the node's user namespace, which is what a
// kubelet inside the node means by them.
func parseUserNS(opts *runtimeapi.UserNamespace, host Host) (*netns.IDMaps, error) {
	if opts == nil || onNode(opts.Mode) {
		return nil, nil
	}
	if opts.Mode != runtimeapi.NamespaceMode_POD {
		return nil, invalid("user namespace mode %s is neither POD nor NODE", opts.Mode)
	}
	if len(opts.Uids) != 1 || len(opts.Gids) != 1 {
		return nil, invalid("a user namespace of its own needs one UID and one GID mapping, got %d and %d", len(opts.Uids), len(opts.Gids))
	}
	maps := &netns.IDMaps{}
	for _, m := range []struct {
		what string
		in   *runtimeapi.IDMapping
		out  *[]idmap.Map
		node []idmap.Map
	}{
		{"UID", opts.Uids[0], &maps.UIDs, host.UIDs},
		{"GID", opts.Gids[0], &maps.GIDs, host.GIDs},
	} {
		if m.in.Length == 0 || m.in.ContainerId != 0 {
			return nil, invalid("the %s mapping of the user namespace must begin at container ID 0 and have a length", m.what)
		}
		if !idmap.Covered(m.node, m.in.HostId, m.in.Length) {
			return nil, invalid("the %s range %d+%d of the user namespace lies outside the node's own IDs; give the user more subordinate IDs (usermod --add-subuids, --add-subgids)", m.what, m.in.HostId, m.in.Length)
		}
		*m.out = []idmap.Map{{Container: m.in.ContainerId, Host: m.in.HostId, Size: m.in.Length}}
	}
	return maps, nil
}
