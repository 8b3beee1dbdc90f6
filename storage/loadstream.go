package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// LoadFrom is Load of an archive that is read from r. kind is "oci-archive",
// "docker-archive", or "", for which the content says it; ref as in Load. It is kept on
// the store's disk meanwhile. ErrCorrupt where r is empty, ErrTooLarge where it has more
// than Limits.Size bytes.
func (im *Images) LoadFrom(ctx context.Context, r io.Reader, kind, ref string) ([]Image, error) {
	if kind != "" && kind != "oci-archive" && kind != "docker-archive" {
		return nil, fmt.Errorf("%w: %.40q is no kind of archive", ErrUnsupported, kind)
	}
	tmp, err := makeTmp(im.store.dirs.tmp())
	if err != nil {
		return nil, classify(ctx, fmt.Errorf("make a directory for the archive: %w", err))
	}
	defer os.RemoveAll(tmp)
	path := filepath.Join(tmp, "archive")
	if err := spool(r, path, im.store.opts.Limits.Size); err != nil {
		return nil, classify(ctx, fmt.Errorf("receive the archive: %w", err))
	}
	if kind != "" {
		path = kind + ":" + path
	}
	if ref != "" {
		path += ":" + ref
	}
	return im.load(ctx, path, "the archive")
}

// spool writes r, of at most limit bytes, to a new file.
func spool(r io.Reader, path string, limit int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	n, err := io.Copy(f, io.LimitReader(r, limit+1))
	err = errors.Join(err, f.Close())
	switch {
	case err != nil:
		return err
	case n > limit:
		return tooLarge("size", "the archive has more bytes", limit)
	case n == 0:
		return fmt.Errorf("%w: it is empty", ErrCorrupt)
	}
	return nil
}
