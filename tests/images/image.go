package main

import (
	"encoding/json"
	"runtime"
	"strings"

	digest "github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// recipe says what an image is made of.
type recipe struct {
	names  []string // with registry and tag, as a pod asks for them
	layers []*layer
	config v1.ImageConfig
	docker bool // Docker's media types instead of OCI's
	index  bool // behind an index that has another architecture too
	export bool // also as files to load
}

// image is a recipe as blobs.
type image struct {
	names    []string
	blobs    map[digest.Digest][]byte // config, layers, and manifests that an index names
	top      v1.Descriptor            // what a tag points to
	topData  []byte
	plain    [][]byte // layers, uncompressed
	config   []byte
	children []v1.Descriptor
}

const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
	dockerLayer    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
)

func newImage(r recipe) (*image, error) {
	img := &image{names: r.names, blobs: map[digest.Digest][]byte{}}
	var err error
	img.top, img.topData, err = img.manifest(r, runtime.GOARCH)
	if err != nil || !r.index {
		return img, err
	}
	// The other one first, so that taking the first entry would be wrong.
	other := "arm64"
	if runtime.GOARCH == other {
		other = "amd64"
	}
	foreign, data, err := img.manifest(r, other)
	if err != nil {
		return nil, err
	}
	img.children = []v1.Descriptor{foreign, img.top}
	img.blobs[foreign.Digest] = data
	img.blobs[img.top.Digest] = img.topData
	img.topData, err = json.Marshal(v1.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: v1.MediaTypeImageIndex,
		Manifests: img.children,
	})
	img.top = descriptor(v1.MediaTypeImageIndex, img.topData)
	return img, err
}

// manifest adds the blobs of the image for one architecture.
func (img *image) manifest(r recipe, arch string) (v1.Descriptor, []byte, error) {
	manifestType, configType, layerType := v1.MediaTypeImageManifest, v1.MediaTypeImageConfig, v1.MediaTypeImageLayerGzip
	if r.docker {
		manifestType, configType, layerType = dockerManifest, dockerConfig, dockerLayer
	}
	config := v1.Image{
		Created:  &made,
		Platform: v1.Platform{Architecture: arch, OS: "linux"},
		Config:   r.config,
		RootFS:   v1.RootFS{Type: "layers"},
	}
	m := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: manifestType}
	img.plain = nil
	for _, l := range r.layers {
		plain, compressed, err := l.blob()
		if err != nil {
			return v1.Descriptor{}, nil, err
		}
		d := descriptor(layerType, compressed)
		img.blobs[d.Digest] = compressed
		img.plain = append(img.plain, plain)
		m.Layers = append(m.Layers, d)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(plain))
		config.History = append(config.History, v1.History{Created: &made, CreatedBy: "subpod/tests/images"})
	}
	configData, err := json.Marshal(config)
	if err != nil {
		return v1.Descriptor{}, nil, err
	}
	m.Config = descriptor(configType, configData)
	img.blobs[m.Config.Digest] = configData
	if arch == runtime.GOARCH {
		img.config = configData
	}
	data, err := json.Marshal(m)
	d := descriptor(manifestType, data)
	d.Platform = &v1.Platform{Architecture: arch, OS: "linux"}
	return d, data, err
}

func descriptor(mediaType string, data []byte) v1.Descriptor {
	return v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
}

// split takes "registry/path:tag" apart; the tag is "latest" when there is none.
func split(name string) (repository, tag string) {
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		return name[:i], name[i+1:]
	}
	return name, "latest"
}
