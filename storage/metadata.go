package storage

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/manifest"
	cstorage "go.podman.io/storage"
)

// metadata is what never changes about an image. It is kept in memory, because
// containers/storage answers questions about layers only while no layer is written: with
// overlays for moments, with vfs as long as one is unpacked.
type metadata struct {
	config v1.Image
	size   uint64
	chain  []string // layer IDs, uppermost first
}

// imageMetadata is the metadata of images by ID.
type imageMetadata struct {
	mu    sync.Mutex
	known map[string]*metadata
}

func (f *imageMetadata) get(id string) *metadata {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.known[id]
}

func (f *imageMetadata) put(id string, new *metadata) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.known == nil {
		f.known = map[string]*metadata{}
	}
	f.known[id] = new
}

func (f *imageMetadata) forget(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.known, id)
}

// find returns containers/storage's record of the image that ref names.
func (l *layerStore) find(ref string) (*cstorage.Image, error) {
	notFound := fmt.Errorf("%w: %s", ErrImageNotFound, ref)
	if id := imageID(ref); id != "" {
		img, err := l.cs.Image(id)
		if errors.Is(err, cstorage.ErrImageUnknown) {
			return nil, notFound
		}
		return img, err
	}
	named, err := parseReference(ref)
	if err != nil {
		return nil, err
	}
	img, err := l.cs.Image(named.String())
	if err == nil || !errors.Is(err, cstorage.ErrImageUnknown) {
		return img, err
	}
	list, err := l.cs.Images()
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	if digested, ok := named.(reference.Canonical); ok {
		if img := byManifest(list, digested); img != nil {
			return img, nil
		}
		return nil, notFound
	}
	if !partialID().MatchString(ref) {
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

func (l *layerStore) describe(img *cstorage.Image) (Image, error) {
	f, err := l.metadataOf(img)
	if err != nil {
		return Image{}, err
	}
	out := Image{
		ID: img.ID, Digest: img.Digest, Size: f.size,
		Config: f.config.Config, User: f.config.Config.User, Labels: f.config.Config.Labels,
		Created: img.Created, Architecture: f.config.Architecture, OS: f.config.OS, Variant: f.config.Variant,
		History: f.config.History, Layers: f.config.RootFS.DiffIDs, Author: f.config.Author, ReadOnly: img.ReadOnly, Pinned: img.ReadOnly,
	}
	if f.config.Created != nil {
		out.Created = *f.config.Created
	}
	out.RepoTags, out.RepoDigests = splitNames(img.Names)
	for _, n := range img.Names {
		out.Pinned = out.Pinned || l.pinned[n]
	}
	return out, nil
}

// metadataOf returns the metadata of img, from memory where it is known. Otherwise it
// waits for layers that are being written.
func (l *layerStore) metadataOf(img *cstorage.Image) (*metadata, error) {
	f := l.metadata.get(img.ID)
	if f != nil {
		return f, nil
	}
	if err := l.vetImage(img.ID); err != nil {
		return nil, err
	}
	f = &metadata{}
	config, err := l.configOf(img.ID)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(config, &f.config); err != nil {
		return nil, fmt.Errorf("%w: configuration of image %s: %w", ErrCorrupt, img.ID, err)
	}
	for id := img.TopLayer; id != ""; {
		if !fullID().MatchString(id) {
			return nil, fmt.Errorf("%w: %.100q is no ID of a layer", ErrCorrupt, id)
		}
		layer, err := l.cs.Layer(id)
		if err != nil {
			return nil, fmt.Errorf("layer %s of image %s: %w", id, img.ID, err)
		}
		f.chain = append(f.chain, id)
		f.size += uint64(max(layer.UncompressedSize, 0))
		id = layer.Parent
	}
	l.metadata.put(img.ID, f)
	return f, nil
}

// configOf returns the configuration of an image, found through its manifest.
func (l *layerStore) configOf(id string) ([]byte, error) {
	raw, err := l.cs.ImageBigData(id, cstorage.ImageDigestBigDataKey)
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
	config, err := l.cs.ImageBigData(id, key.String())
	if err != nil {
		return nil, fmt.Errorf("configuration of image %s: %w", id, err)
	}
	return config, nil
}
