package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/pkg/state"
)

// teardownPod removes whatever the record says was made for the pod sandbox,
// but for its containers and the record itself. All steps run; idempotent.
func (r *Runtime) teardownPod(ctx context.Context, p state.Pod) error {
	var errs []error
	if p.Allocated.NetworkAsked {
		errs = append(errs, r.Network.Teardown(ctx, p.ID))
	}
	dir := r.podDir(p.ID)
	errs = append(errs,
		unmount(filepath.Join(dir, "shm")),
		netns.Unpin(dir),
		r.removeCgroup(ctx, p.Allocated.Cgroup),
	)
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("tear down pod sandbox %s: %w", p.ID, err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("tear down pod sandbox %s: %w", p.ID, err)
	}
	return nil
}

// cleanContainer removes what an exited container no longer needs: processes,
// the runtime's state, mounts, the bundle. The log, the writable layer and the
// record stay. All steps run; idempotent.
func (r *Runtime) cleanContainer(ctx context.Context, c state.Container) error {
	var errs []error
	if c.Allocated.Runtime != nil {
		if err := r.Executor.Delete(ctx, c.ID, *c.Allocated.Runtime); err != nil {
			// While processes may be alive, their mounts are left alone.
			return fmt.Errorf("clean up container %s: %w", c.ID, err)
		}
	}
	errs = append(errs, r.Images.UnmountRootfs(ctx, c.ID))
	for _, key := range c.Allocated.ImageMounts {
		errs = append(errs, r.Images.UnmountImage(ctx, key))
	}
	errs = append(errs, r.removeCgroup(ctx, c.Allocated.Cgroup))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("clean up container %s: %w", c.ID, err)
	}
	if err := os.RemoveAll(r.containerDir(c.ID)); err != nil {
		return fmt.Errorf("clean up container %s: %w", c.ID, err)
	}
	return nil
}

// teardownContainer removes whatever the record says was made for the
// container, but for its log and the record itself. Idempotent.
func (r *Runtime) teardownContainer(ctx context.Context, c state.Container) error {
	return errors.Join(r.cleanContainer(ctx, c), r.Images.DeleteRootfs(ctx, c.ID))
}

func (r *Runtime) removeCgroup(ctx context.Context, dir string) error {
	if dir == "" {
		return nil
	}
	return r.Cgroup.Remove(ctx, dir)
}
