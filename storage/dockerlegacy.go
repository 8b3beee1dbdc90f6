package storage

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxLegacyLayers bounds the ancestors of an image. Docker had at most 127.
const maxLegacyLayers = 1000

// legacyImages returns the images of an archive from before Docker 1.10: a directory for
// each layer, with its own configuration, the one above it in "parent", and names of the
// uppermost in the file "repositories". ErrCorrupt, ErrUnsupported.
func (a *savedArchive) legacyImages() ([]archiveImage, error) {
	parents, err := a.legacyParents()
	if err != nil {
		return nil, err
	}
	if len(parents) == 0 {
		return nil, fmt.Errorf("%w: it is no archive of Docker's: it has no manifest.json and no layers", ErrCorrupt)
	}
	tags, err := a.legacyTags()
	if err != nil {
		return nil, err
	}
	isParent := map[string]bool{}
	for _, parent := range parents {
		isParent[parent] = true
	}
	var images []archiveImage
	for _, id := range slices.Sorted(maps.Keys(parents)) {
		if isParent[id] && len(tags[id]) == 0 {
			continue
		}
		img, err := a.legacyImage(id, parents)
		if err != nil {
			return nil, err
		}
		img.RepoTags = tags[id]
		images = append(images, img)
	}
	if len(images) == 0 {
		return nil, fmt.Errorf("%w: its layers have each other as parents", ErrCorrupt)
	}
	return images, nil
}

// legacyLayer is what is of interest in a layer's configuration.
type legacyLayer struct {
	ID              string            `json:"id"`
	Parent          string            `json:"parent"`
	Created         json.RawMessage   `json:"created"`
	Author          string            `json:"author"`
	ContainerConfig struct{ Cmd any } `json:"container_config"`
}

// legacyParents returns the layers of the archive and the parent of each.
func (a *savedArchive) legacyParents() (map[string]string, error) {
	parents := map[string]string{}
	for name := range a.files {
		dir, base := path.Split(name)
		if id := strings.TrimSuffix(dir, "/"); base == "json" && id != "" && !strings.Contains(id, "/") {
			l, _, err := a.legacyLayer(id)
			if err != nil {
				return nil, err
			}
			parents[id] = l.Parent
		}
	}
	return parents, nil
}

func (a *savedArchive) legacyLayer(id string) (l legacyLayer, text []byte, err error) {
	if text, err = a.read(path.Join(id, "json"), maxArchiveJSON); err != nil {
		return l, nil, err
	}
	if err := json.Unmarshal(text, &l); err != nil {
		return l, nil, fmt.Errorf("%w: the configuration of layer %.80q: %w", ErrCorrupt, id, err)
	}
	return l, text, nil
}

// legacyTags returns the names of images by layer.
func (a *savedArchive) legacyTags() (map[string][]string, error) {
	text, err := a.read("repositories", maxArchiveJSON)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var repositories map[string]map[string]string
	if err := json.Unmarshal(text, &repositories); err != nil {
		return nil, fmt.Errorf("%w: repositories: %w", ErrCorrupt, err)
	}
	tags := map[string][]string{}
	for _, name := range slices.Sorted(maps.Keys(repositories)) {
		for _, tag := range slices.Sorted(maps.Keys(repositories[name])) {
			id := repositories[name][tag]
			tags[id] = append(tags[id], name+":"+tag)
		}
	}
	return tags, nil
}

// legacyImage makes one configuration of those of a layer and its ancestors, as Docker
// 1.10 did.
func (a *savedArchive) legacyImage(id string, parents map[string]string) (archiveImage, error) {
	none := archiveImage{}
	var chain []string
	for at := id; at != ""; at = parents[at] {
		if _, ok := parents[at]; !ok {
			return none, fmt.Errorf("%w: layer %.80q, the parent of another, is not in the archive", ErrCorrupt, at)
		}
		if chain = append(chain, at); len(chain) > maxLegacyLayers {
			return none, fmt.Errorf("%w: image %.80q has more than %d layers", ErrCorrupt, id, maxLegacyLayers)
		}
	}
	slices.Reverse(chain)
	_, top, err := a.legacyLayer(id)
	if err != nil {
		return none, err
	}
	config := map[string]any{}
	if err := json.Unmarshal(top, &config); err != nil {
		return none, fmt.Errorf("%w: the configuration of layer %.80q: %w", ErrCorrupt, id, err)
	}
	for _, key := range []string{"id", "parent", "parent_id", "layer_id", "throwaway", "Size", "container"} {
		delete(config, key)
	}
	rootfs := v1.RootFS{Type: "layers"}
	var history []map[string]any
	img := archiveImage{}
	for _, at := range chain {
		l, _, err := a.legacyLayer(at)
		if err != nil {
			return none, err
		}
		r, name, err := a.open(path.Join(at, "layer.tar"))
		if err != nil {
			return none, err
		}
		diffID, err := digest.FromReader(r)
		if err != nil {
			return none, fmt.Errorf("%w: layer %.80q: %w", ErrCorrupt, at, err)
		}
		img.Layers = append(img.Layers, name)
		rootfs.DiffIDs = append(rootfs.DiffIDs, diffID)
		entry := map[string]any{}
		if len(l.Created) > 0 {
			entry["created"] = l.Created
		}
		if l.Author != "" {
			entry["author"] = l.Author
		}
		if words, ok := l.ContainerConfig.Cmd.([]any); ok {
			var by []string
			for _, w := range words {
				by = append(by, fmt.Sprint(w))
			}
			entry["created_by"] = strings.Join(by, " ")
		}
		history = append(history, entry)
	}
	config["rootfs"], config["history"] = rootfs, history
	img.configuration, err = json.Marshal(config)
	return img, err
}
