package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/subpod/subpod/pkg/tree"
)

// PathInfo reports what a path below root is, links followed; both false where there
// is none.
func PathInfo(root *os.File, path string) (exists, isDir bool, err error) {
	p, err := tree.At(root, path)
	if errors.Is(err, tree.ErrNotFound) {
		return false, false, nil
	}
	if err != nil {
		return false, false, err
	}
	defer p.Close()
	return p.Exists, p.IsDir, nil
}

// CopyOut writes the file or directory at a path below root as a tar stream.
// errdefs.ErrInvalidArgument where there is no such path.
func CopyOut(root *os.File, id, path string, w io.Writer) error {
	p, err := tree.At(root, path)
	if err == nil && !p.Exists {
		p.Close()
		err = fmt.Errorf("%s: %w", path, tree.ErrNotFound)
	}
	if err != nil {
		return invalid("copy from container %s: %w", id, err)
	}
	defer p.Close()
	if err := tree.Pack(p, w); err != nil {
		return fmt.Errorf("copy %s from container %s: %w", path, id, err)
	}
	return nil
}

// CopyIn unpacks a tar stream into the directory at a path below root.
// errdefs.ErrInvalidArgument where there is no such directory; the cause of ctx when that ends.
func CopyIn(ctx context.Context, root *os.File, id, dir string, tar io.Reader) error {
	p, err := tree.At(root, dir)
	if err == nil && !p.IsDir {
		p.Close()
		err = fmt.Errorf("%s is not a directory", dir)
	}
	if err != nil {
		return invalid("copy into container %s: %w", id, err)
	}
	defer p.Close()
	into, err := p.OpenRoot(p.Name)
	if err != nil {
		return fmt.Errorf("copy into container %s: open %s: %w", id, dir, err)
	}
	defer into.Close()
	if err := tree.UnpackSetID(ctx, into, "", tar); err != nil {
		return fmt.Errorf("copy into %s of container %s: %w", dir, id, err)
	}
	return nil
}
