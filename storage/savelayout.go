package storage

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"go.podman.io/image/v5/oci/layout"
	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/openat2"
)

// formatLayout is that of a job which saves one image as an OCI layout, savedLayout where it
// is made in the directory of a transfer.
const (
	formatLayout = "oci"
	savedLayout  = "layout"
)

// saveLayout has a content process write an image, by its name or ID, as an OCI layout. The
// caller closes the layout.
func (t *transfer) saveLayout(ref string) (*layoutReference, error) {
	if _, err := t.runContent(contentJob{Save: []string{ref}, Format: formatLayout}, contentRun{}); err != nil {
		return nil, err
	}
	tmp, err := os.Open(t.tmp)
	if err != nil {
		return nil, err
	}
	defer tmp.Close()
	path := filepath.Join(t.tmp, savedLayout)
	fd, err := openat2.NoLinks(int(tmp.Fd()), savedLayout, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, &os.PathError{Op: "open", Path: path, Err: err})
	}
	l := &ociLayout{dir: os.NewFile(uintptr(fd), path), path: path, limits: t.im.store.opts.Limits}
	list, err := l.images()
	if err == nil && len(list) != 1 {
		err = fmt.Errorf("%w: the layout of an image has %d images", ErrCorrupt, len(list))
	}
	name, nameErr := layout.NewIndexReference(path, 0)
	if err := errors.Join(err, nameErr); err != nil {
		l.close()
		return nil, err
	}
	return &layoutReference{name, l, list[0]}, nil
}
