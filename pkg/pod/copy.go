package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/tree"
)

// CopyInfo tells what a path in a container is, links followed; both false where
// there is none. state.ErrNotFound.
func (r *Runtime) CopyInfo(ctx context.Context, id, path string) (exists, isDir bool, err error) {
	err = r.inside(ctx, id, func(root *os.File) error {
		p, err := tree.At(root, path)
		if errors.Is(err, tree.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		defer p.Close()
		exists, isDir = p.Exists, p.IsDir
		return nil
	})
	return exists, isDir, err
}

// CopyOut writes the file or directory at a path of a container as a tar stream.
// state.ErrNotFound, ErrInvalid where there is no such path.
func (r *Runtime) CopyOut(ctx context.Context, id, path string, w io.Writer) error {
	return r.inside(ctx, id, func(root *os.File) error {
		p, err := tree.At(root, path)
		if err == nil && !p.Exists {
			p.Close()
			err = fmt.Errorf("%s: %w", path, tree.ErrNotFound)
		}
		if err != nil {
			return fmt.Errorf("%w: copy from container %s: %w", ErrInvalid, id, err)
		}
		defer p.Close()
		if err := tree.Pack(p, w); err != nil {
			return fmt.Errorf("copy %s from container %s: %w", path, id, err)
		}
		return nil
	})
}

// CopyIn unpacks a tar stream into the directory at a path of a container. The
// files belong to the container's root. state.ErrNotFound, ErrInvalid where
// there is no such directory.
func (r *Runtime) CopyIn(ctx context.Context, id, dir string, tar io.Reader) error {
	return r.inside(ctx, id, func(root *os.File) error {
		p, err := tree.At(root, dir)
		if err == nil && !p.IsDir {
			p.Close()
			err = fmt.Errorf("%s is no directory", dir)
		}
		if err != nil {
			return fmt.Errorf("%w: copy into container %s: %w", ErrInvalid, id, err)
		}
		defer p.Close()
		into, err := p.OpenRoot(p.Name)
		if err != nil {
			return fmt.Errorf("copy into container %s: open %s: %w", id, dir, err)
		}
		defer into.Close()
		if err := tree.Unpack(into, "", tar); err != nil {
			return fmt.Errorf("copy into %s of container %s: %w", dir, id, err)
		}
		return nil
	})
}

// inside calls do with the root directory of a container: that of its process
// (with its mounts) while it runs, else its root file system, mounted for it.
func (r *Runtime) inside(ctx context.Context, id string, do func(root *os.File) error) error {
	c, err := r.State.Container(id)
	if err != nil {
		return err
	}
	if c.State() == runtimeapi.ContainerState_CONTAINER_RUNNING && c.Allocated.Runtime != nil {
		root, err := os.Open(fmt.Sprintf("/proc/%d/root", c.Allocated.Runtime.Init.PID))
		if err == nil && c.Allocated.Runtime.Init.Alive() {
			defer root.Close()
			return do(root)
		}
		if err == nil {
			root.Close()
		}
	}
	// Nobody may remove it meanwhile.
	unlock, err := r.containers.alone(ctx, c.ID)
	if err != nil {
		return err
	}
	defer unlock()
	if c, err = r.State.Container(c.ID); err != nil {
		return err
	}
	return r.insideStopped(ctx, c, do)
}

func (r *Runtime) insideStopped(ctx context.Context, c state.Container, do func(root *os.File) error) (err error) {
	rootfs, err := r.Images.MountRootfs(ctx, c.ID)
	if err != nil {
		return err
	}
	if c.State() == runtimeapi.ContainerState_CONTAINER_EXITED {
		defer func() {
			ctx, cancel := r.detached(ctx)
			defer cancel()
			err = errors.Join(err, r.Images.UnmountRootfs(ctx, c.ID))
		}()
	}
	root, err := os.Open(rootfs.Path)
	if err != nil {
		return fmt.Errorf("open the root file system of container %s: %w", c.ID, err)
	}
	defer root.Close()
	return do(root)
}
