package pod

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/errclass"
	"github.com/subpod/subpod/pkg/idmap"
	"github.com/subpod/subpod/pkg/state"
)

// ErrNoIDs says that the node has no range of IDs for another pod sandbox.
var ErrNoIDs = errclass.New(errdefs.ErrResourceExhausted, "too few IDs of the node are free")

// wholeRange is how many IDs a kubelet gives each pod with a user namespace of its own,
// from a multiple of it on (KEP-127). What asks for as many gets such a range, too.
const wholeRange = 65536

// ownIDs chooses ranges of the node's IDs for pod sandboxes (api.AnnotationOwnIDs): no two
// have the same, also when they are made at the same time.
type ownIDs struct {
	pods func() []state.Pod

	mu     sync.Mutex
	chosen map[string]idRange // by pod ID, until the record has it
}

// idRange is IDs of the node: size of them, from first on.
type idRange struct{ first, size uint32 }

// assign returns cfg with the mappings of a range that is the pod sandbox's own, if it asks
// for one. release is called once its record is there, or never will be.
func (o *ownIDs) assign(podID string, cfg *runtimeapi.PodSandboxConfig, uids, gids []idmap.Map) (_ *runtimeapi.PodSandboxConfig, release func(), err error) {
	text, asked := cfg.GetAnnotations()[api.AnnotationOwnIDs]
	users := cfg.GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions()
	if !asked {
		return cfg, func() {}, nil
	}
	size, err := strconv.ParseUint(text, 10, 31)
	if err != nil || size == 0 || users == nil || users.Mode != runtimeapi.NamespaceMode_POD || len(users.Uids)+len(users.Gids) > 0 {
		return nil, nil, fmt.Errorf("%w: annotation %s: want a number of IDs, for a user namespace of the pod's own without mappings, not %.40q", errdefs.ErrInvalidArgument, api.AnnotationOwnIDs, text)
	}
	r, err := o.choose(podID, uint32(size), uids, gids)
	if err != nil {
		return nil, nil, err
	}
	cfg = proto.Clone(cfg).(*runtimeapi.PodSandboxConfig)
	own := []*runtimeapi.IDMapping{{HostId: r.first, Length: r.size}}
	users = cfg.Linux.SecurityContext.NamespaceOptions.UsernsOptions
	users.Uids, users.Gids = own, own
	return cfg, func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		delete(o.chosen, podID)
	}, nil
}

// choose finds the first free range. It leaves out the node's 0, which is the user that
// the node belongs to.
func (o *ownIDs) choose(podID string, size uint32, uids, gids []idmap.Map) (idRange, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	taken := slices.AppendSeq(rangesOf(o.pods()), maps.Values(o.chosen))
	slices.SortFunc(taken, func(a, b idRange) int { return cmp.Compare(a.first, b.first) })
	align := uint64(1)
	if size >= wholeRange {
		align = wholeRange
	}
	first := align
	for _, t := range taken {
		if uint64(t.first) >= first+uint64(size) {
			break
		}
		if end := uint64(t.first) + uint64(t.size); end > first {
			first = (end + align - 1) / align * align
		}
	}
	r := idRange{uint32(first), size}
	if first+uint64(size) > 1<<32 || !idmap.Covered(uids, r.first, size) || !idmap.Covered(gids, r.first, size) {
		return idRange{}, fmt.Errorf("%w: a pod with a user namespace of its own needs %d that no other pod has, and the node has %d in all, with its own; remove such pods, ask for fewer (--userns auto:size=), or add subordinate IDs (usermod --add-subuids, --add-subgids) and restart the daemon",
			ErrNoIDs, size, min(idmap.Last(uids), idmap.Last(gids))+1)
	}
	o.chosen[podID] = r
	return r, nil
}

// rangesOf returns the IDs of all user namespaces of pod sandboxes.
func rangesOf(pods []state.Pod) []idRange {
	var out []idRange
	for _, p := range pods {
		users := p.Config.V.GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions()
		if users.GetMode() != runtimeapi.NamespaceMode_POD {
			continue // it is the node's
		}
		for _, m := range slices.Concat(users.GetUids(), users.GetGids()) {
			out = append(out, idRange{m.HostId, m.Length})
		}
	}
	return out
}
