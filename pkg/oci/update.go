package oci

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Update changes a running container's cgroup limits. Fields left nil stay as
// they are. ErrNoCgroup when nothing is delegated, ErrNotRunning when init has
// ended.
func (e *Executor) Update(ctx context.Context, id string, c Container, r *specs.LinuxResources) error {
	rt, err := e.handler(c.Handler)
	if err != nil {
		return err
	}
	if err := checkID(id); err != nil {
		return err
	}
	if !c.Init.Alive() {
		return fmt.Errorf("container %s: %w", id, ErrNotRunning)
	}
	if e.noCgroup {
		return ErrNoCgroup
	}
	dir, err := os.MkdirTemp(e.execDir, "")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode resources: %w", err)
	}
	file := filepath.Join(dir, "resources.json")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		return err
	}
	return rt.call(ctx, "update", "--resources", file, id)
}
