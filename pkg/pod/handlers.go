package pod

import (
	"maps"
	"slices"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/idmap"
	"github.com/subpod/subpod/pkg/ocispec"
)

// minUserNSRange is how many IDs the kubelet gives each pod with a user
// namespace of its own, from the next multiple on (KEP-127).
const minUserNSRange = 65536

// runtimeFeatures returns the features of a handler's OCI runtime.
func (r *Runtime) runtimeFeatures(handler string) ocispec.Features {
	f := r.Executor.Handlers()[handler]
	return ocispec.Features{RecursiveReadOnlyMounts: f.RecursiveReadOnlyMounts, IDMappedMounts: f.IDMappedMounts}
}

// HandlerFeatures lists the runtime handlers and what each can do; the default
// one stands first once more, under the empty name (proto: RuntimeHandler.name).
func (r *Runtime) HandlerFeatures() []*runtimeapi.RuntimeHandler {
	known := r.Executor.Handlers()
	names := append([]string{""}, slices.Sorted(maps.Keys(known))...)
	// The kubelet takes whole ranges above the first: without one in the node,
	// hostUsers: false would fail there.
	userNamespaces := idmap.Covered(r.UIDs, minUserNSRange, minUserNSRange) && idmap.Covered(r.GIDs, minUserNSRange, minUserNSRange) &&
		r.Images.Nestable() == nil
	out := make([]*runtimeapi.RuntimeHandler, len(names))
	for i, name := range names {
		features := known[name]
		if name == "" {
			features = known[r.DefaultHandler]
		}
		out[i] = &runtimeapi.RuntimeHandler{Name: name, Features: &runtimeapi.RuntimeHandlerFeatures{
			RecursiveReadOnlyMounts: features.RecursiveReadOnlyMounts && r.Host.RecursiveReadOnly,
			UserNamespaces:          userNamespaces,
		}}
	}
	return out
}
