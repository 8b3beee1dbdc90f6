package container

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/subpod/subpod/pkg/ocispec"
	"github.com/subpod/subpod/pkg/state"
)

// ExecProcess returns the process that runs cmd in a container: with the user,
// environment and limits of the container's own. errdefs.ErrInvalidArgument,
// errdefs.ErrFailedPrecondition when the container has ended meanwhile.
func ExecProcess(c state.Container, cmd []string, tty bool) (*specs.Process, error) {
	if len(cmd) == 0 {
		return nil, invalid("exec in container %s: no command", c.ID)
	}
	text, err := os.ReadFile(filepath.Join(c.Allocated.Runtime.Bundle, "config.json"))
	if errors.Is(err, os.ErrNotExist) { // cleaned up
		return nil, fmt.Errorf("%w: exec in container %s: it has ended", errdefs.ErrFailedPrecondition, c.ID)
	}
	if err != nil {
		return nil, fmt.Errorf("read the spec of container %s: %w", c.ID, err)
	}
	// Only the process is of interest: the rest is large.
	var spec struct {
		Process *specs.Process `json:"process"`
	}
	if err := json.Unmarshal(text, &spec); err != nil {
		return nil, fmt.Errorf("read the spec of container %s: %w", c.ID, err)
	}
	return ocispec.ExecProcess(&specs.Spec{Process: spec.Process}, cmd, tty), nil
}
