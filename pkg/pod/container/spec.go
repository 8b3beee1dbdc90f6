package container

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/subpod/subpod/pkg/state"
)

// RuntimeSpec returns the OCI specification that the container was created from, as
// JSON; nil when there is none (any more). Mounts have what they show as their source,
// where the OCI runtime was given a mount of it that is gone.
func RuntimeSpec(c state.Container) (json.RawMessage, error) {
	if c.Allocated.Runtime == nil {
		return nil, nil
	}
	text, err := os.ReadFile(filepath.Join(c.Allocated.Runtime.Bundle, "config.json"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the spec of container %s: %w", c.ID, err)
	}
	return withSources(text, c.Allocated.MountSources)
}

// withSources returns the specification with other sources of mounts, by destination.
func withSources(text json.RawMessage, sources map[string]string) (json.RawMessage, error) {
	if len(sources) == 0 {
		return text, nil
	}
	var spec specs.Spec
	if err := json.Unmarshal(text, &spec); err != nil {
		return nil, err
	}
	for i, m := range spec.Mounts {
		if source, ok := sources[m.Destination]; ok {
			spec.Mounts[i].Source = source
		}
	}
	return json.Marshal(spec)
}
