package ocispec

import (
	"errors"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// idMapped asks for a mount with an ID mapping of its own: one that is not the pod's,
// whose mounts are ready.
func (b *builder) idMapped(mount *specs.Mount, m *runtimeapi.Mount) error {
	if b.Namespaces.User == "" {
		return errors.New("ID mappings need a pod with a user namespace of its own")
	}
	if len(m.GetUidMappings()) == 0 || len(m.GetGidMappings()) == 0 {
		return errors.New("ID mappings for users and for groups must come together")
	}
	if !b.Features.IDMappedMounts {
		return fmt.Errorf("ID mappings other than the pod's: the runtime handler %q does not know ID-mapped mounts", b.Handler)
	}
	mount.UIDMappings, mount.GIDMappings = specMappings(mappings(m.GetUidMappings())), specMappings(mappings(m.GetGidMappings()))
	return nil
}
