package pod

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/pod/container"
	"github.com/subpod/subpod/pkg/state"
)

// rootOpener opens root directories of containers: *container.Builder.
type rootOpener interface {
	OpenRoot(c state.Container) (*os.File, error)
	MountRoot(ctx context.Context, c state.Container) (*os.File, error)
	UnmountRoot(ctx context.Context, c state.Container) error
}

// Copier copies files into and out of containers. A client that reads or sends
// slowly, or not at all, holds nothing that another request waits for: the copy has a
// reference, and ends when the container is removed.
type Copier struct {
	Manager *Manager
	Roots   rootOpener
}

// copyBuffer is the size in bytes of the pieces that are handed to a client.
const copyBuffer = 256 << 10

// Info reports what a path in a container is, links followed; both false where
// there is none. state.ErrNotFound.
func (c *Copier) Info(ctx context.Context, id, path string) (exists, isDir bool, err error) {
	root, err := c.open(ctx, id)
	if err != nil {
		return false, false, err
	}
	defer root.close()
	return container.PathInfo(root.dir, path)
}

// Out writes the file or directory at a path of a container as a tar stream.
// state.ErrNotFound, errdefs.ErrInvalidArgument where there is no such path.
func (c *Copier) Out(ctx context.Context, id, path string, w io.Writer) error {
	root, err := c.open(ctx, id)
	if err != nil {
		return err
	}
	r, pipe := io.Pipe()
	// Closing the write end ends both ends, with the cause; it has no effect on a copy
	// that is complete.
	stop := context.AfterFunc(root.ctx, func() { pipe.CloseWithError(context.Cause(root.ctx)) })
	go func() {
		defer root.close()
		buffer := bufio.NewWriterSize(pipe, copyBuffer)
		err := container.CopyOut(root.dir, id, path, buffer)
		if err == nil {
			err = buffer.Flush()
		}
		pipe.CloseWithError(err)
	}()
	defer stop()
	_, err = io.CopyBuffer(writerOnly{w}, readerOnly{r}, make([]byte, copyBuffer))
	r.CloseWithError(errors.Join(io.ErrClosedPipe, err))
	return err
}

// In unpacks a tar stream into the directory at a path of a container. The files
// belong to the container's root. The stream is read to its end. state.ErrNotFound,
// errdefs.ErrInvalidArgument where there is no such directory.
func (c *Copier) In(ctx context.Context, id, dir string, tar io.Reader) error {
	root, err := c.open(ctx, id)
	if err != nil {
		return err
	}
	defer root.close()
	r, pipe := io.Pipe()
	stop := context.AfterFunc(root.ctx, func() { pipe.CloseWithError(context.Cause(root.ctx)) })
	defer stop()
	// Ends when the client sends no more, or when its request ends.
	go func() {
		_, err := io.Copy(writerOnly{pipe}, readerOnly{tar})
		pipe.CloseWithError(err)
	}()
	err = container.CopyIn(root.ctx, root.dir, id, dir, r)
	if err == nil { // the end of an archive is padded
		_, err = io.Copy(io.Discard, r)
	}
	r.CloseWithError(errors.Join(io.ErrClosedPipe, err))
	return err
}

// writerOnly and readerOnly hide methods by which io.Copy would choose another size
// of pieces.
type (
	writerOnly struct{ io.Writer }
	readerOnly struct{ io.Reader }
)

// openRoot is the root directory of a container: that of its process (with its
// mounts) while it runs, else its root file system, mounted for it.
type openRoot struct {
	dir   *os.File
	ctx   context.Context // ends when the container is removed
	close func()
}

func (c *Copier) open(ctx context.Context, id string) (*openRoot, error) {
	held, err := c.Manager.container(ctx, id, exclusive)
	if err != nil {
		return nil, err
	}
	defer held.unlock()
	if held.Status.Removing || !held.Status.Created {
		return nil, wrongState("copy files of container %s: it is being made or removed", held.ID)
	}
	var dir *os.File
	mounted := false
	if held.State() == runtimeapi.ContainerState_CONTAINER_RUNNING && held.Allocated.Runtime != nil {
		dir, _ = c.Roots.OpenRoot(held.Container) // it may have ended just now
	}
	if dir == nil {
		if dir, err = c.Roots.MountRoot(held.ctx, held.Container); err != nil {
			return nil, explain(held.ctx, err)
		}
		mounted = true
	}
	ref := c.Manager.references.add(ctx, held.ID)
	return &openRoot{dir: dir, ctx: ref.ctx, close: func() {
		dir.Close()
		ref.close()
		if mounted {
			c.unmount(held.ID)
		}
	}}, nil
}

// unmount unmounts the root file system of an exited container that nobody reads any
// more.
func (c *Copier) unmount(id string) {
	ctx, cancel := detached(c.Manager.ctx)
	defer cancel()
	held, err := c.Manager.container(ctx, id, exclusive)
	if err != nil {
		return // removed
	}
	defer held.unlock()
	if held.State() != runtimeapi.ContainerState_CONTAINER_EXITED || c.Manager.references.has(id) {
		return
	}
	if err := c.Roots.UnmountRoot(ctx, held.Container); err != nil {
		c.Manager.Log.Warn("a root file system could not be unmounted after a copy", "container", id, "error", err)
	}
}
