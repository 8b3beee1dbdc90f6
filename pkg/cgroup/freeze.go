package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/subpod/subpod/pkg/errclass"
)

// ErrNoFreezer says that processes cannot be frozen here.
var ErrNoFreezer = errclass.New(errdefs.ErrFailedPrecondition, "containers cannot be paused")

const (
	// freezeTimeout bounds the wait until all processes of a cgroup have stopped: one in
	// an uninterruptible system call does so only after it.
	freezeTimeout = 10 * time.Second
	freezePoll    = 5 * time.Millisecond
)

// Freeze stops all processes of a cgroup of ours, or lets them go on, and returns once
// they have. Idempotent. ErrNoFreezer without a delegated cgroup.
func (d Delegation) Freeze(ctx context.Context, dir string, frozen bool) error {
	if !d.Enabled() || dir == "" {
		reason := d.Reason
		if reason == "" {
			reason = "the container has no cgroup"
		}
		return fmt.Errorf("%w: %s; it needs a delegated cgroup v2 (docs/cgroups.md)", ErrNoFreezer, reason)
	}
	value := "0"
	if frozen {
		value = "1"
	}
	err := os.WriteFile(filepath.Join(dir, "cgroup.freeze"), []byte(value), 0)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: %w", ErrNoFreezer, err)
	}
	if err != nil {
		return fmt.Errorf("freeze a cgroup: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, freezeTimeout)
	defer cancel()
	for {
		text, err := os.ReadFile(filepath.Join(dir, "cgroup.events"))
		if err != nil || strings.Contains(string(text), "frozen "+value) {
			return err
		}
		select {
		case <-time.After(freezePoll):
		case <-ctx.Done():
			return fmt.Errorf("wait until cgroup %s has changed to frozen %s: %w", dir, value, ctx.Err())
		}
	}
}

// Frozen reports whether a cgroup is frozen.
func (d Delegation) Frozen(dir string) bool {
	if !d.Enabled() || dir == "" {
		return false
	}
	text, err := os.ReadFile(filepath.Join(dir, "cgroup.freeze"))
	return err == nil && strings.TrimSpace(string(text)) == "1"
}
