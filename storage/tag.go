package storage

import (
	"context"
	"errors"
	"fmt"
	"slices"

	cstorage "go.podman.io/storage"
)

// Tag adds a name to the image that ref names, and removes it from any other
// image. Idempotent. ErrImageNotFound, ErrBadReference,
// ErrReadOnlyImage.
func (im *Images) Tag(_ context.Context, ref, name string) error {
	im.names.Lock()
	defer im.names.Unlock()
	img, err := im.store.find(ref)
	if err != nil {
		return err
	}
	named, err := parseReference(name)
	if err != nil {
		return err
	}
	if _, digests := splitNames([]string{named.String()}); len(digests) > 0 {
		return fmt.Errorf("%w: %q holds a digest, which only a pull can give", ErrBadReference, name)
	}
	if img.ReadOnly {
		return fmt.Errorf("%w: tag %s where it was made", ErrReadOnlyImage, ref)
	}
	err = im.store.cs.AddNames(img.ID, []string{named.String()})
	if errors.Is(err, cstorage.ErrImageUnknown) {
		return fmt.Errorf("%w: %s", ErrImageNotFound, ref) // removed meanwhile
	}
	if err != nil {
		return fmt.Errorf("tag image %s as %s: %w", img.ID, named, err)
	}
	return nil
}

// Untagged is the result of Untag.
type Untagged struct {
	Names []string // that were removed
	// Deleted is the ID of the image, "" if it is still there.
	Deleted string
}

// Untag removes the tag ref from its image, and removes the image when that
// was its last one. A ref that is an ID removes the image; with several tags
// only if force is set. Unlike Remove it reports when there is no such image.
// ErrImageNotFound, ErrImageInUse, ErrReadOnlyImage, ErrBadReference.
func (im *Images) Untag(ctx context.Context, ref string, force bool) (Untagged, error) {
	im.names.Lock()
	img, err := im.store.find(ref)
	if err != nil {
		im.names.Unlock()
		return Untagged{}, err
	}
	tags, _ := splitNames(img.Names)
	name := ""
	if imageID(ref) == "" {
		if named, err := parseReference(ref); err == nil && slices.Contains(tags, named.String()) {
			name = named.String()
		}
	}
	if name != "" && len(tags) > 1 {
		defer im.names.Unlock()
		if img.ReadOnly {
			return Untagged{}, fmt.Errorf("%w: untag %s where it was made", ErrReadOnlyImage, ref)
		}
		if err := im.store.cs.RemoveNames(img.ID, []string{name}); err != nil {
			return Untagged{}, fmt.Errorf("untag %s: %w", name, err)
		}
		return Untagged{Names: []string{name}}, nil
	}
	im.names.Unlock()
	if name == "" && len(tags) > 1 && !force {
		return Untagged{}, fmt.Errorf("%w: image %s has %d names: %s", ErrImageInUse, ref, len(tags), tags)
	}
	if err := im.Remove(ctx, img.ID); err != nil {
		return Untagged{}, err
	}
	return Untagged{Names: tags, Deleted: img.ID}, nil
}
