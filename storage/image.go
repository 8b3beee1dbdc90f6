package storage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/docker/reference"
	cstorage "go.podman.io/storage"

	"github.com/subpod/subpod/storage/internal/fetch"
)

// Image is one image of the store.
type Image struct {
	// ID is the digest of the image's configuration: 64 hex digits.
	ID string
	// RepoTags are full names with a tag, RepoDigests full names with the digest
	// that a registry gave (of the index, where there is one). An image whose
	// tag has moved on keeps its RepoDigests.
	RepoTags, RepoDigests []string
	// Size is the unpacked size of all layers, in bytes.
	Size   uint64
	Config v1.ImageConfig
	// User is Config.User, Labels Config.Labels.
	User    string
	Labels  map[string]string
	Created time.Time
	// Pinned says that the image must not be garbage collected: it was named in
	// Options.Pinned, or is in a read-only store.
	Pinned bool
	// Digest is the digest of the image's own manifest.
	Digest                    digest.Digest
	Architecture, OS, Variant string
	History                   []v1.History
	// Layers are the digests of the layers' uncompressed archives, the lowest first.
	Layers []digest.Digest
	// Author is who made the image, as its configuration says.
	Author string
	// ReadOnly says that the image is in an additional store.
	ReadOnly bool
}

// DigestIn returns the digested name of the image in the repository of name; "" where it
// has none there.
func (i Image) DigestIn(name string) string {
	asked, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return ""
	}
	for _, digested := range i.RepoDigests {
		if known, err := reference.ParseNormalizedNamed(digested); err == nil && known.Name() == asked.Name() {
			return digested
		}
	}
	return ""
}

// Images manages the images of a store.
type Images struct {
	store      *layerStore
	registries registries
	pulls      pulls
	spool      *fetch.Spool // nil where there can't be one
	active     atomic.Int32 // pulls and loads
	held       holds        // layers, by transfers
	names      sync.Mutex   // taken by Tag and Untag
	usage      layerUsage
	work       sync.WaitGroup // background syncs and removals
}

func newImages(l *layerStore) *Images {
	return &Images{store: l, registries: registries{opts: &l.opts, cache: l.dirs.cache(), log: l.log},
		pulls: pulls{flights: map[string]*flight{}}, usage: layerUsage{known: map[string]Usage{}}}
}

// close ends all pulls and waits for background work.
func (im *Images) close() {
	im.pulls.close()
	im.work.Wait()
}

// List returns all images, those of additional stores included, by ID.
func (im *Images) List(ctx context.Context) ([]Image, error) {
	list, err := im.store.cs.Images()
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	images := make([]Image, 0, len(list))
	for i := range list {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		img, err := im.store.describe(&list[i])
		if errors.Is(err, cstorage.ErrImageUnknown) || errors.Is(err, cstorage.ErrLayerUnknown) {
			continue // removed meanwhile
		}
		if err != nil {
			im.store.log.Warn("image left out of the list: its records can't be read", "image", list[i].ID, "error", err)
			continue
		}
		images = append(images, img)
	}
	slices.SortFunc(images, func(a, b Image) int { return cmp.Compare(a.ID, b.ID) })
	return images, nil
}

// Get returns the image that ref names: an ID (with or without "sha256:"), a
// name with tag or digest (normalised, see parseReference), or the unique
// beginning of an ID. ErrImageNotFound, ErrBadReference.
func (im *Images) Get(_ context.Context, ref string) (Image, error) {
	img, err := im.store.find(ref)
	if err != nil {
		return Image{}, err
	}
	return im.store.describe(img)
}

// Remove removes the image that ref names, with all its tags and digests
// and the layers that no other image needs. Idempotent: an unknown image is no
// error. ErrImageInUse while a root file system or image mount needs it,
// ErrReadOnlyImage for an image of an additional store, ErrBadReference.
func (im *Images) Remove(ctx context.Context, ref string) error {
	img, err := im.store.find(ref)
	if errors.Is(err, ErrImageNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if img.ReadOnly {
		return fmt.Errorf("%w: remove %s where it was made", ErrReadOnlyImage, ref)
	}
	end, err := im.store.images.remove(ctx, img.ID)
	if err != nil {
		return err
	}
	if end == nil {
		return fmt.Errorf("%w: a container of %s is being created", ErrImageInUse, ref)
	}
	defer end()
	if user, err := im.store.userOf(img.ID); err != nil {
		return err
	} else if user != "" {
		return fmt.Errorf("%w: %s is needed by %s", ErrImageInUse, ref, user)
	}
	if err := im.store.deleteImage(img.ID); err != nil && !errors.Is(err, cstorage.ErrImageUnknown) && !errors.Is(err, cstorage.ErrNotAnImage) {
		return fmt.Errorf("remove image %s: %w", ref, err)
	}
	im.store.log.Info("image removed", "ref", ref, "image", img.ID)
	return nil
}

// InUse reports whether a root file system or image mount needs the image.
func (im *Images) InUse(id string) (bool, error) {
	user, err := im.store.userOf(imageID(id))
	return user != "", err
}
