package storage

import (
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/types"
	cstorage "go.podman.io/storage"
)

// A descriptor states the size of what it describes, and what has another size is not to
// be trusted, whatever its digest (OCI image specification, "Descriptor"). Some of what
// writes manifests states none, or 0, and that is not compared.

// wrongSize is the error of something that has another size than is stated of it, nil
// where none is stated.
func wrongSize(what string, d digest.Digest, size, stated int64) error {
	if stated <= 0 || size == stated {
		return nil
	}
	return fmt.Errorf("%w: %s %s has %d bytes, its descriptor states %d", ErrCorrupt, what, d, size, stated)
}

// state notes the sizes that a manifest states for its layers, in place of those of
// another one, and compares them with what is known of layers that are there: these are
// not fetched again.
func (s *holdingStore) state(layers []types.BlobInfo) error {
	stated := map[digest.Digest]int64{}
	for _, l := range layers {
		if l.Size <= 0 {
			continue
		}
		if err := wrongSize("layer", l.Digest, l.Size, stated[l.Digest]); err != nil {
			return err // two descriptors of one blob
		}
		stated[l.Digest] = l.Size
		known, err := s.Store.LayersByCompressedDigest(l.Digest)
		if err != nil {
			continue
		}
		for _, k := range known {
			if k.CompressedSize <= 0 || k.TOCDigest != "" { // pulled in part: nobody has seen all of it
				continue
			}
			if isChanged(k) { // former versions noted the size of what it was changed into
				continue
			}
			if err := wrongSize("layer", l.Digest, k.CompressedSize, l.Size); err != nil {
				return err
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stated = stated
	return nil
}

// checkSize compares a blob that is to be unpacked with what is stated of it.
func (s *holdingStore) checkSize(options *cstorage.LayerOptions, diff io.Reader) error {
	if options == nil || options.OriginalDigest == "" {
		return nil
	}
	s.mu.Lock()
	stated := s.stated[options.OriginalDigest]
	s.mu.Unlock()
	size := stated
	if options.OriginalSize != nil {
		size = *options.OriginalSize
	} else if f, ok := diff.(*os.File); ok {
		st, err := f.Stat()
		if err != nil {
			return err
		}
		size = st.Size()
	}
	err := wrongSize("layer", options.OriginalDigest, size, stated)
	if err == nil {
		return nil
	}
	// The library copies a layer that is there: one that was changed is no longer its blob.
	if there, findErr := s.Store.LayersByUncompressedDigest(options.UncompressedDigest); findErr == nil && slices.ContainsFunc(there, isChanged) {
		return nil
	}
	return err
}
