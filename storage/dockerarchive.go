package storage

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/docker/archive"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/pkg/compression"
	"go.podman.io/image/v5/types"
)

// Bounds of what an archive may hold.
const (
	maxArchiveFiles = 200_000
	maxArchiveJSON  = 32 << 20
	maxArchiveLinks = 16
)

// savedArchive is an archive of "docker save", of any age: layers may be links to each
// other and may be compressed, manifest.json may name files of an OCI layout, and before
// Docker 1.10 there was none.
type savedArchive struct {
	path   string
	file   *os.File // uncompressed
	files  map[string]archiveFile
	images []archiveImage
}

// archiveFile is where a file of the archive is, or what it is a link to.
type archiveFile struct {
	offset, size int64
	link         string
}

// archiveImage is an item of manifest.json. configuration is set where Config names no
// file.
type archiveImage struct {
	Config        string
	RepoTags      []string
	Layers        []string
	configuration []byte
}

// openSavedArchive reads what is in the archive at a path. tmp is for the content of one
// that is compressed. ErrCorrupt, ErrUnsupported.
func openSavedArchive(name, tmp string) (_ *savedArchive, err error) {
	a := &savedArchive{path: name, files: map[string]archiveFile{}}
	if a.file, err = openPlain(name, tmp); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			a.Close()
		}
	}()
	if err := a.scan(); err != nil {
		return nil, err
	}
	list, err := a.read("manifest.json", maxArchiveJSON)
	if errors.Is(err, os.ErrNotExist) {
		a.images, err = a.legacyImages()
		return a, err
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(list, &a.images); err != nil {
		return nil, fmt.Errorf("%w: manifest.json: %w", ErrCorrupt, err)
	}
	return a, nil
}

// openPlain opens a file; what is compressed in it is decompressed into tmp.
func openPlain(name, tmp string) (*os.File, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	plain, compressed, err := compression.AutoDecompress(f)
	if err != nil {
		f.Close()
		return nil, err
	}
	if !compressed {
		_, err := f.Seek(0, io.SeekStart)
		return f, err
	}
	defer f.Close()
	defer plain.Close()
	out, err := os.CreateTemp(tmp, "archive-")
	if err != nil {
		return nil, err
	}
	os.Remove(out.Name()) // it ends with the descriptor
	if _, err := io.Copy(out, plain); err != nil {
		out.Close()
		return nil, err
	}
	_, err = out.Seek(0, io.SeekStart)
	return out, err
}

// Close closes the archive.
func (a *savedArchive) Close() error { return a.file.Close() }

// scan notes where the files of the archive are.
func (a *savedArchive) scan() error {
	for r := tar.NewReader(a.file); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: it is no tar archive: %w", ErrCorrupt, err)
		}
		name := cleanName(h.Name)
		f := archiveFile{size: h.Size}
		switch h.Typeflag {
		case tar.TypeReg:
			if f.offset, err = a.file.Seek(0, io.SeekCurrent); err != nil { // the reader reads no byte ahead
				return err
			}
		case tar.TypeSymlink:
			f.link = cleanName(path.Join(path.Dir(name), h.Linkname))
		case tar.TypeLink:
			f.link = cleanName(h.Linkname)
		default:
			continue
		}
		if a.files[name] = f; len(a.files) > maxArchiveFiles {
			return fmt.Errorf("%w: the archive has more than %d files", ErrUnsupported, maxArchiveFiles)
		}
	}
}

// find returns a file of the archive, links followed, and the name that it has there.
func (a *savedArchive) find(name string) (archiveFile, string, error) {
	name = cleanName(name)
	for range maxArchiveLinks {
		f, ok := a.files[name]
		if !ok {
			return f, name, fmt.Errorf("%w: %w: %.200q is not in the archive", ErrCorrupt, os.ErrNotExist, name)
		}
		if f.link == "" {
			return f, name, nil
		}
		name = f.link
	}
	return archiveFile{}, name, fmt.Errorf("%w: too many links lead to %.200q of the archive", ErrCorrupt, name)
}

// open returns a reader of a file of the archive.
func (a *savedArchive) open(name string) (*io.SectionReader, string, error) {
	f, at, err := a.find(name)
	return io.NewSectionReader(a.file, f.offset, f.size), at, err
}

// read returns the content of a file of the archive.
func (a *savedArchive) read(name string, most int64) ([]byte, error) {
	r, at, err := a.open(name)
	if err != nil {
		return nil, err
	}
	if r.Size() > most {
		return nil, fmt.Errorf("%w: %.200q of the archive has %d bytes, more than %d", ErrUnsupported, at, r.Size(), most)
	}
	data := make([]byte, r.Size())
	if _, err := io.ReadFull(r, data); err != nil {
		return nil, fmt.Errorf("%w: %.200q of the archive: %w", ErrCorrupt, at, err)
	}
	return data, nil
}

// List returns references to the images of the archive, one for each name of an image,
// or one without a name. They are valid until Close.
func (a *savedArchive) List() ([][]types.ImageReference, error) {
	var list [][]types.ImageReference
	// Nothing is opened by this path, and the library takes none with a colon.
	shown := strings.ReplaceAll(a.path, ":", "_")
	for i := range a.images {
		var refs []types.ImageReference
		for _, tag := range a.images[i].RepoTags {
			named, err := reference.ParseNormalizedNamed(tag)
			if err != nil {
				return nil, fmt.Errorf("%w: the archive names an image %.200q: %w", ErrCorrupt, tag, err)
			}
			tagged, ok := named.(reference.NamedTagged)
			if !ok {
				return nil, fmt.Errorf("%w: the archive names an image %.200q, without a tag", ErrCorrupt, tag)
			}
			ref, err := archive.NewReference(shown, tagged)
			if err != nil {
				return nil, err
			}
			refs = append(refs, archiveReference{ref, a, &a.images[i]})
		}
		if len(refs) == 0 {
			ref, err := archive.NewReference(shown, nil)
			if err != nil {
				return nil, err
			}
			refs = append(refs, archiveReference{ref, a, &a.images[i]})
		}
		list = append(list, refs)
	}
	return list, nil
}

// archiveReference is an image of an archive that is open.
type archiveReference struct {
	types.ImageReference
	archive *savedArchive
	image   *archiveImage
}

// NewImageSource returns the image's source.
func (r archiveReference) NewImageSource(context.Context, *types.SystemContext) (types.ImageSource, error) {
	s := &archiveSource{ref: r, blobs: map[digest.Digest]string{}}
	return s, s.describe()
}

// archiveSource reads an image of an archive.
type archiveSource struct {
	ref      archiveReference
	config   []byte
	manifest []byte
	blobs    map[digest.Digest]string // files of layers
}

// describe makes the image's manifest. The digest of a layer that is not compressed is
// what the configuration says, and is checked when it is copied.
func (s *archiveSource) describe() (err error) {
	image, a := s.ref.image, s.ref.archive
	if s.config = image.configuration; s.config == nil {
		if s.config, err = a.read(image.Config, maxArchiveJSON); err != nil {
			return err
		}
	}
	var config v1.Image
	if err := json.Unmarshal(s.config, &config); err != nil {
		return fmt.Errorf("%w: its configuration: %w", ErrCorrupt, err)
	}
	if len(config.RootFS.DiffIDs) != len(image.Layers) {
		return fmt.Errorf("%w: the archive has %d layers for an image of %d", ErrCorrupt, len(image.Layers), len(config.RootFS.DiffIDs))
	}
	m := v1.Manifest{MediaType: v1.MediaTypeImageManifest,
		Config: v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: digest.FromBytes(s.config), Size: int64(len(s.config))}}
	m.SchemaVersion = 2
	for i, name := range image.Layers {
		d, err := s.layer(name, config.RootFS.DiffIDs[i])
		if err != nil {
			return err
		}
		m.Layers = append(m.Layers, d)
	}
	s.manifest, err = json.Marshal(m)
	return err
}

// layer describes a layer.
func (s *archiveSource) layer(name string, diffID digest.Digest) (v1.Descriptor, error) {
	none := v1.Descriptor{}
	r, at, err := s.ref.archive.open(name)
	if err != nil {
		return none, err
	}
	if err := diffID.Validate(); err != nil {
		return none, fmt.Errorf("%w: its configuration has the digest %.80q", ErrCorrupt, diffID)
	}
	d := v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: diffID, Size: r.Size()}
	format, _, start, err := compression.DetectCompressionFormat(r)
	if err != nil {
		return none, fmt.Errorf("%w: layer %.200q of the archive: %w", ErrCorrupt, at, err)
	}
	if name := format.Name(); name != "" {
		if d.Digest, err = digest.FromReader(start); err != nil {
			return none, fmt.Errorf("%w: layer %.200q of the archive: %w", ErrCorrupt, at, err)
		}
		switch name {
		case compression.Gzip.Name():
			d.MediaType = v1.MediaTypeImageLayerGzip
		case compression.Zstd.Name():
			d.MediaType = v1.MediaTypeImageLayerZstd
		}
	}
	s.blobs[d.Digest] = at
	return d, nil
}

// Reference returns the reference of the image.
func (s *archiveSource) Reference() types.ImageReference { return s.ref }

// Close does nothing: the archive has other images.
func (s *archiveSource) Close() error { return nil }

// HasThreadSafeGetBlob returns true.
func (s *archiveSource) HasThreadSafeGetBlob() bool { return true }

// GetManifest returns the manifest.
func (s *archiveSource) GetManifest(context.Context, *digest.Digest) ([]byte, string, error) {
	return s.manifest, v1.MediaTypeImageManifest, nil
}

// GetBlob returns a layer or the configuration, and its size.
func (s *archiveSource) GetBlob(_ context.Context, info types.BlobInfo, _ types.BlobInfoCache) (io.ReadCloser, int64, error) {
	if name, ok := s.blobs[info.Digest]; ok {
		r, _, err := s.ref.archive.open(name)
		return io.NopCloser(r), r.Size(), err
	}
	if info.Digest == digest.FromBytes(s.config) {
		return io.NopCloser(bytes.NewReader(s.config)), int64(len(s.config)), nil
	}
	return nil, 0, fmt.Errorf("%w: the archive has no blob %s", ErrCorrupt, info.Digest)
}

// GetSignatures returns none: archives of Docker hold none.
func (s *archiveSource) GetSignatures(context.Context, *digest.Digest) ([][]byte, error) {
	return nil, nil
}

// LayerInfosForCopy returns nil: the manifest's are right.
func (s *archiveSource) LayerInfosForCopy(context.Context, *digest.Digest) ([]types.BlobInfo, error) {
	return nil, nil
}
