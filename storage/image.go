package storage

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containers/image/v5/docker/reference"
	"github.com/containers/image/v5/manifest"
	cstorage "github.com/containers/storage"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
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
	Digest           digest.Digest
	Architecture, OS string
	History          []v1.History
	// ReadOnly says that the image is in an additional store.
	ReadOnly bool
}

// facts are what never changes about an image. They are kept in memory, because
// containers/storage answers questions about layers only when no layer is being
// unpacked.
type facts struct {
	config v1.Image
	size   uint64
	chain  []string // layer IDs, uppermost first
}

// Images returns all images, those of additional stores included, by ID.
func (s *Store) Images(ctx context.Context) ([]Image, error) {
	list, err := s.cs.Images()
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	images := make([]Image, 0, len(list))
	for i := range list {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		img, err := s.describe(&list[i])
		if errors.Is(err, cstorage.ErrImageUnknown) || errors.Is(err, cstorage.ErrLayerUnknown) {
			continue // removed meanwhile
		}
		if err != nil {
			s.log.Warn("image left out of the list: its records can't be read", "image", list[i].ID, "error", err)
			continue
		}
		images = append(images, img)
	}
	slices.SortFunc(images, func(a, b Image) int { return cmp.Compare(a.ID, b.ID) })
	return images, nil
}

// Image returns the image that ref names: an ID (with or without "sha256:"), a
// name with tag or digest (normalised, see parseReference), or the unique
// beginning of an ID. ErrImageNotFound, ErrBadReference.
func (s *Store) Image(ctx context.Context, ref string) (Image, error) {
	img, err := s.find(ref)
	if err != nil {
		return Image{}, err
	}
	return s.describe(img)
}

// find returns containers/storage's record of the image that ref names.
func (s *Store) find(ref string) (*cstorage.Image, error) {
	notFound := fmt.Errorf("%w: %s", ErrImageNotFound, ref)
	if id := imageID(ref); id != "" {
		img, err := s.cs.Image(id)
		if errors.Is(err, cstorage.ErrImageUnknown) {
			return nil, notFound
		}
		return img, err
	}
	named, err := parseReference(ref)
	if err != nil {
		return nil, err
	}
	img, err := s.cs.Image(named.String())
	if err == nil || !errors.Is(err, cstorage.ErrImageUnknown) {
		return img, err
	}
	list, err := s.cs.Images()
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	if digested, ok := named.(reference.Canonical); ok {
		if img := byManifest(list, digested); img != nil {
			return img, nil
		}
		return nil, notFound
	}
	if !partialID.MatchString(ref) {
		return nil, notFound
	}
	var found *cstorage.Image
	for i := range list {
		if strings.HasPrefix(list[i].ID, ref) {
			if found != nil && found.ID != list[i].ID {
				return nil, fmt.Errorf("%w: %s is the beginning of several image IDs", ErrBadReference, ref)
			}
			found = &list[i]
		}
	}
	if found == nil {
		return nil, notFound
	}
	return found, nil
}

// byManifest finds an image of a repository by the digest of any of its
// manifests, for example the one of its platform when it was pulled by index.
func byManifest(list []cstorage.Image, ref reference.Canonical) *cstorage.Image {
	for i := range list {
		if !slices.Contains(list[i].Digests, ref.Digest()) {
			continue
		}
		for _, n := range slices.Concat(list[i].Names, list[i].NamesHistory) {
			if named, err := reference.ParseNormalizedNamed(n); err == nil && named.Name() == ref.Name() {
				return &list[i]
			}
		}
	}
	return nil
}

func (s *Store) describe(img *cstorage.Image) (Image, error) {
	f, err := s.factsOf(img)
	if err != nil {
		return Image{}, err
	}
	out := Image{
		ID: img.ID, Digest: img.Digest, Size: f.size,
		Config: f.config.Config, User: f.config.Config.User, Labels: f.config.Config.Labels,
		Created: img.Created, Architecture: f.config.Architecture, OS: f.config.OS,
		History: f.config.History, ReadOnly: img.ReadOnly, Pinned: img.ReadOnly,
	}
	if f.config.Created != nil {
		out.Created = *f.config.Created
	}
	out.RepoTags, out.RepoDigests = splitNames(img.Names)
	for _, n := range img.Names {
		out.Pinned = out.Pinned || s.pinned[n]
	}
	return out, nil
}

// factsOf returns the facts of img, from memory where they are known. Unknown
// ones wait for layers that are being unpacked.
func (s *Store) factsOf(img *cstorage.Image) (*facts, error) {
	s.factsMu.Lock()
	f := s.facts[img.ID]
	s.factsMu.Unlock()
	if f != nil {
		return f, nil
	}
	f = &facts{}
	config, err := s.configOf(img.ID)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(config, &f.config); err != nil {
		return nil, fmt.Errorf("%w: configuration of image %s: %w", ErrCorrupt, img.ID, err)
	}
	for id := img.TopLayer; id != ""; {
		layer, err := s.cs.Layer(id)
		if err != nil {
			return nil, fmt.Errorf("layer %s of image %s: %w", id, img.ID, err)
		}
		f.chain = append(f.chain, id)
		f.size += uint64(max(layer.UncompressedSize, 0))
		id = layer.Parent
	}
	s.factsMu.Lock()
	s.facts[img.ID] = f
	s.factsMu.Unlock()
	return f, nil
}

// configOf returns the configuration of an image, found through its manifest.
func (s *Store) configOf(id string) ([]byte, error) {
	raw, err := s.cs.ImageBigData(id, cstorage.ImageDigestBigDataKey)
	if err != nil {
		return nil, fmt.Errorf("manifest of image %s: %w", id, err)
	}
	m, err := manifest.FromBlob(raw, manifest.GuessMIMEType(raw))
	if err != nil {
		return nil, fmt.Errorf("%w: manifest of image %s: %w", ErrCorrupt, id, err)
	}
	key := m.ConfigInfo().Digest
	if key == "" {
		return nil, fmt.Errorf("%w: image %s is of Docker schema 1", ErrUnsupported, id)
	}
	config, err := s.cs.ImageBigData(id, key.String())
	if err != nil {
		return nil, fmt.Errorf("configuration of image %s: %w", id, err)
	}
	return config, nil
}

func (s *Store) forget(id string) {
	s.factsMu.Lock()
	delete(s.facts, id)
	s.factsMu.Unlock()
}

// RemoveImage removes the image that ref names, with all its tags and digests
// and the layers that no other image needs. Idempotent: an unknown image is no
// error. ErrImageInUse while a root file system or image mount needs it,
// ErrReadOnlyImage for an image of an additional store, ErrBadReference.
func (s *Store) RemoveImage(ctx context.Context, ref string) error {
	s.images.Lock()
	defer s.images.Unlock()
	img, err := s.find(ref)
	if errors.Is(err, ErrImageNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if img.ReadOnly {
		return fmt.Errorf("%w: remove %s where it was made", ErrReadOnlyImage, ref)
	}
	if user, err := s.userOf(img.ID); err != nil {
		return err
	} else if user != "" {
		return fmt.Errorf("%w: %s is needed by %s", ErrImageInUse, ref, user)
	}
	if _, err := s.cs.DeleteImage(img.ID, true); err != nil && !errors.Is(err, cstorage.ErrImageUnknown) {
		return fmt.Errorf("remove image %s: %w", ref, err)
	}
	s.forget(img.ID)
	s.log.Info("image removed", "ref", ref, "image", img.ID)
	return nil
}

// InUse reports whether a root file system or image mount needs the image.
func (s *Store) InUse(id string) (bool, error) {
	user, err := s.userOf(imageID(id))
	return user != "", err
}
