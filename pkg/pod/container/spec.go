package container

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/subpod/subpod/pkg/state"
)

// RuntimeSpec returns the OCI specification that the container was created from, as
// JSON; nil when there is none (any more).
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
	return text, nil
}
