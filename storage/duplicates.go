package storage

import (
	"archive/tar"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"maps"
	"strings"

	"github.com/opencontainers/go-digest"
	cstorage "go.podman.io/storage"
	"go.podman.io/storage/pkg/archive"
	"go.podman.io/storage/pkg/ioutils"
)

// flagChanged is a flag of layers that cannot be written out as they came.
const flagChanged = "subpod.changed"

// hasDuplicates reports whether containers/storage refused a layer because it has a name
// twice: its record of a layer's tar stream finds the content of files by name.
func hasDuplicates(err error) bool {
	return err != nil && strings.Contains(err.Error(), "duplicates of file paths")
}

// withoutDuplicates returns the layer in blob as a tar stream in which each name is there
// once, with what tar would leave of it, and options for it: digests and size are the blob's.
func withoutDuplicates(blob io.ReadSeeker, options cstorage.LayerOptions) (io.ReadCloser, cstorage.LayerOptions, error) {
	d := duplicates{seed: maphash.MakeSeed(), last: map[uint64]int{}, links: map[int][]string{}}
	whole := digest.Canonical.Digester()
	plainSize := ioutils.NewWriteCounter(whole.Hash())
	err := readLayer(blob, func(r io.Reader) error {
		r = io.TeeReader(r, plainSize)
		if err := d.find(tar.NewReader(r)); err != nil {
			return err
		}
		_, err := io.Copy(io.Discard, r)
		return err
	})
	if err != nil {
		return nil, options, err
	}
	if options.UncompressedDigest == "" {
		options.UncompressedDigest = whole.Digest()
	}
	if options.OriginalDigest == "" {
		options.OriginalDigest, options.OriginalSize = options.UncompressedDigest, &plainSize.Count
	}
	if options.OriginalSize == nil {
		size, err := blob.Seek(0, io.SeekEnd)
		if err != nil {
			return nil, options, err
		}
		options.OriginalSize = &size
	}
	options.Flags = maps.Clone(options.Flags)
	if options.Flags == nil {
		options.Flags = map[string]any{}
	}
	options.Flags[flagChanged] = true
	r, w := io.Pipe()
	go func() {
		w.CloseWithError(readLayer(blob, func(in io.Reader) error { return d.write(w, tar.NewReader(in)) }))
	}()
	return r, options, nil
}

// readLayer calls do with the decompressed layer.
func readLayer(blob io.ReadSeeker, do func(io.Reader) error) error {
	if _, err := blob.Seek(0, io.SeekStart); err != nil {
		return err
	}
	plain, err := archive.DecompressStream(blob)
	if err != nil {
		return err
	}
	defer plain.Close()
	return do(plain)
}

// duplicates are the names that a layer has more than once. Entries have numbers.
type duplicates struct {
	seed  maphash.Seed
	last  map[uint64]int   // by name
	links map[int][]string // hard links to an entry
}

func (d *duplicates) hash(name string) uint64 { return maphash.String(d.seed, cleanName(name)) }

// find reads the headers of a layer.
func (d *duplicates) find(in *tar.Reader) error {
	for i := 0; ; i++ {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if h.Typeflag == tar.TypeLink {
			if target, ok := d.last[d.hash(h.Linkname)]; ok {
				d.links[target] = append(d.links[target], h.Name)
			}
		}
		d.last[d.hash(h.Name)] = i
	}
}

// write writes the layer. An entry that a later one of the name replaces is left out; if
// there are hard links to it, the first of them is written in its place.
func (d *duplicates) write(out io.Writer, in *tar.Reader) error {
	moved := map[uint64]string{} // entries that are now at the name of a link to them
	w := tar.NewWriter(out)
	for i := 0; ; i++ {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return w.Close()
		}
		if err != nil {
			return err
		}
		name := d.hash(h.Name)
		if h.Typeflag == tar.TypeLink {
			if at, ok := moved[d.hash(h.Linkname)]; ok {
				if at == h.Name {
					continue
				}
				h.Linkname = at
			}
		}
		if d.last[name] != i && h.Typeflag != tar.TypeXGlobalHeader {
			links := d.links[i]
			if len(links) == 0 || h.Typeflag == tar.TypeDir {
				continue
			}
			h.Name = links[0]
			moved[name] = h.Name
		} else {
			delete(moved, name)
		}
		if err := writeEntry(w, h, in); err != nil {
			return fmt.Errorf("%.200q: %w", h.Name, err)
		}
	}
}

// writeEntry writes an entry that a reader has returned.
func writeEntry(w *tar.Writer, h *tar.Header, body io.Reader) error {
	h.Format, h.Xattrs = tar.FormatPAX, nil //lint:ignore SA1019 the reader fills it in beside PAXRecords
	if h.Typeflag == tar.TypeXGlobalHeader {
		h = &tar.Header{Typeflag: h.Typeflag, PAXRecords: h.PAXRecords, Format: tar.FormatPAX}
	}
	if h.Typeflag == tar.TypeGNUSparse {
		h.Typeflag = tar.TypeReg
	}
	maps.DeleteFunc(h.PAXRecords, func(key, _ string) bool { return strings.HasPrefix(key, "GNU.sparse.") })
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	_, err := io.Copy(w, body)
	return err
}

func isChanged(layer cstorage.Layer) bool {
	changed, _ := layer.Flags[flagChanged].(bool)
	return changed
}

// unchanged returns ErrUnsupported for an image with a layer that cannot be written out
// as it came.
func (l *layerStore) unchanged(image string) error {
	layers, err := l.chain(image)
	if err != nil {
		return err
	}
	for _, id := range layers {
		layer, err := l.cs.Layer(id)
		if err != nil {
			return err
		}
		if isChanged(*layer) {
			return fmt.Errorf("%w: a layer of %s has a name twice and cannot be written out as it came: pull the image where it is needed", ErrUnsupported, image)
		}
	}
	return nil
}
