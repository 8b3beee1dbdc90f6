package storage

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"sync"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/pkg/compression"
	"go.podman.io/image/v5/types"
	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/openat2"
)

// ociLayout is the directory of an OCI image layout. Whoever wrote it is not trusted:
// only regular files in it are read, through no link, and what a descriptor says of a
// blob is compared with the blob.
type ociLayout struct {
	dir    *os.File
	path   string
	limits Limits
}

func (t *worker) openLayout(dir string) (*ociLayout, error) {
	f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrImageNotFound, err)
	}
	return &ociLayout{dir: f, path: dir, limits: t.meter.limits}, nil
}

func (l *ociLayout) close() { l.dir.Close() }

// open opens a regular file below the directory.
func (l *ociLayout) open(name string) (*os.File, int64, error) {
	fd, err := openat2.NoLinks(int(l.dir.Fd()), name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		err = &os.PathError{Op: "open", Path: filepath.Join(l.path, name), Err: err}
		if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.EXDEV) {
			return nil, 0, fmt.Errorf("%w: %w: links are not followed in an image layout", ErrCorrupt, err)
		}
		return nil, 0, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	f := os.NewFile(uintptr(fd), filepath.Join(l.path, name))
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%w: %s is no regular file", ErrCorrupt, f.Name())
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, st.Size(), nil
}

// images returns the images that the index names.
func (l *ociLayout) images() ([]v1.Descriptor, error) {
	f, size, err := l.open(v1.ImageIndexFile)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := l.limits.checkManifest(size); err != nil {
		return nil, err
	}
	raw, err := io.ReadAll(io.LimitReader(f, l.limits.Manifest))
	if err != nil {
		return nil, err
	}
	var index v1.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrCorrupt, f.Name(), err)
	}
	if n := int64(len(index.Manifests)); n > l.limits.Names {
		return nil, tooLarge("names", fmt.Sprintf("the index names %d images", n), l.limits.Names)
	}
	return index.Manifests, nil
}

// blob opens the blob that d describes. A size that is not positive is not stated.
func (l *ociLayout) blob(d digest.Digest, size int64) (*os.File, int64, error) {
	if err := d.Validate(); err != nil {
		return nil, 0, fmt.Errorf("%w: digest %q: %w", ErrCorrupt, d, err)
	}
	f, n, err := l.open(path.Join("blobs", d.Algorithm().String(), d.Encoded()))
	if err != nil {
		return nil, 0, err
	}
	if err := wrongSize("blob", d, n, size); err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, n, nil
}

// manifest returns the manifest or index that d describes.
func (l *ociLayout) manifest(d digest.Digest, size int64) ([]byte, error) {
	f, n, err := l.blob(d, size)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := l.limits.checkManifest(n); err != nil {
		return nil, err
	}
	raw, err := io.ReadAll(io.LimitReader(f, l.limits.Manifest))
	if err != nil {
		return nil, err
	}
	if d.Algorithm().FromBytes(raw) != d {
		return nil, fmt.Errorf("%w: the manifest %s does not have this digest", ErrCorrupt, d)
	}
	return raw, nil
}

// config returns the configuration that d describes.
func (l *ociLayout) config(d v1.Descriptor) ([]byte, error) {
	if err := l.limits.checkConfigSize(d.Size); err != nil {
		return nil, err
	}
	f, n, err := l.blob(d.Digest, d.Size)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := l.limits.checkConfigSize(n); err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(f, n))
}

// layoutReference names one image of a layout, for the library.
type layoutReference struct {
	types.ImageReference
	layout *ociLayout
	entry  v1.Descriptor
}

// NewImageSource returns the image.
func (r *layoutReference) NewImageSource(context.Context, *types.SystemContext) (types.ImageSource, error) {
	return &layoutSource{r}, nil
}

// layoutSource reads one image of a layout.
type layoutSource struct{ ref *layoutReference }

// Reference implements types.ImageSource.
func (s *layoutSource) Reference() types.ImageReference { return s.ref }

// Close implements types.ImageSource.
func (s *layoutSource) Close() error { return nil }

// GetManifest implements types.ImageSource.
func (s *layoutSource) GetManifest(_ context.Context, instance *digest.Digest) ([]byte, string, error) {
	if instance != nil {
		raw, err := s.ref.layout.manifest(*instance, -1)
		return raw, manifest.GuessMIMEType(raw), err
	}
	entry := s.ref.entry
	raw, err := s.ref.layout.manifest(entry.Digest, entry.Size)
	mime := entry.MediaType
	if mime == "" {
		mime = manifest.GuessMIMEType(raw)
	}
	return raw, mime, err
}

// GetBlob implements types.ImageSource. Layers that lie elsewhere are not fetched.
func (s *layoutSource) GetBlob(_ context.Context, info types.BlobInfo, _ types.BlobInfoCache) (io.ReadCloser, int64, error) {
	return s.blob(info)
}

func (s *layoutSource) blob(info types.BlobInfo) (io.ReadCloser, int64, error) {
	f, n, err := s.ref.layout.blob(info.Digest, info.Size)
	if err != nil {
		return nil, 0, err
	}
	return f, n, nil
}

// HasThreadSafeGetBlob implements types.ImageSource.
func (s *layoutSource) HasThreadSafeGetBlob() bool { return true }

// GetSignatures implements types.ImageSource: a layout has none.
func (s *layoutSource) GetSignatures(context.Context, *digest.Digest) ([][]byte, error) {
	return nil, nil
}

// LayerInfosForCopy implements types.ImageSource.
func (s *layoutSource) LayerInfosForCopy(context.Context, *digest.Digest) ([]types.BlobInfo, error) {
	return nil, nil
}

// layoutFile are the files of a layout in an archive that are of use.
var layoutFile = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^(oci-layout|index\.json|blobs/[a-z0-9]+/[0-9a-f]{32,128})$`)
})

// unpackLayout unpacks an archive of an OCI layout into dir: regular files of a layout
// only, up to the limits. Something else in the place of one is refused, what a layout
// does not have is left out.
func (t *worker) unpackLayout(archive, dir string) error {
	f, err := os.Open(archive)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrImageNotFound, err)
	}
	defer f.Close()
	stream, _, err := compression.AutoDecompress(f)
	if err != nil {
		return fmt.Errorf("unpacking failed: %w", err)
	}
	defer stream.Close()
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	metered := (&meter{ctx: t.ctx, limits: t.meter.limits}).read(stream)
	for tr := tar.NewReader(metered); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) && metered.err == nil {
			return nil
		}
		if err != nil {
			return unpackingFailed(err, metered)
		}
		name := path.Clean(h.Name)
		if !layoutFile().MatchString(name) {
			continue
		}
		if h.Typeflag != tar.TypeReg {
			return fmt.Errorf("%w: %s is no regular file in the archive", ErrCorrupt, name)
		}
		if err := root.MkdirAll(path.Dir(name), 0o700); err != nil {
			return err
		}
		out, err := root.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(out, tr)
		if err := errors.Join(err, out.Close()); err != nil {
			return unpackingFailed(err, metered)
		}
	}
}

func unpackingFailed(err error, metered *meteredLayer) error {
	if metered.err != nil {
		return metered.err
	}
	return fmt.Errorf("unpacking failed: %w", err)
}
