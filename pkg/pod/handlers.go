package pod

import (
	"fmt"
	"maps"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/subpod/subpod/pkg/oci"
)

// Handlers are the configured runtime handlers.
type Handlers struct {
	// Default is the name of the handler of requests that name none.
	Default string
	Known   map[string]oci.Features
}

// Resolve returns the name of the runtime handler that a request means: the default
// one for "". errdefs.ErrInvalidArgument for an unknown one.
func (h Handlers) Resolve(name string) (string, error) {
	if name == "" {
		return h.Default, nil
	}
	if _, ok := h.Known[name]; !ok {
		return "", fmt.Errorf("%w: runtime handler %q is not configured", errdefs.ErrInvalidArgument, name)
	}
	return name, nil
}

// Names lists the handlers; the default one stands first once more, under the empty
// name (proto: RuntimeHandler.name).
func (h Handlers) Names() []string {
	return append([]string{""}, slices.Sorted(maps.Keys(h.Known))...)
}
