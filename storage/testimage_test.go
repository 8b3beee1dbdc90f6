package storage

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"maps"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// entry is a file of a test layer.
type entry struct {
	content  string
	mode     int64
	uid, gid int
	typeflag byte // 0: regular file
	link     string
}

// layer is a test layer: files by path.
type layer map[string]entry

// built is an image as a registry holds it.
type built struct {
	manifest []byte
	config   []byte
	blobs    map[digest.Digest][]byte // config and layers
	layers   []digest.Digest
}

func (b built) id() string            { return digest.FromBytes(b.config).Encoded() }
func (b built) digest() digest.Digest { return digest.FromBytes(b.manifest) }

func (l layer) tar(t testing.TB) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, name := range slices.Sorted(maps.Keys(l)) {
		e := l[name]
		h := &tar.Header{Name: name, Mode: e.mode, Uid: e.uid, Gid: e.gid, Size: int64(len(e.content)),
			Typeflag: e.typeflag, Linkname: e.link, ModTime: time.Unix(1700000000, 0)}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o644
			if h.Typeflag == tar.TypeDir {
				h.Mode = 0o755
			}
		}
		if h.Typeflag != tar.TypeReg {
			h.Size = 0
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := w.Write([]byte(e.content)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func gzipped(t testing.TB, data []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// imageSpec says what build makes.
type imageSpec struct {
	arch   string // "" is this machine's
	config v1.ImageConfig
	layers []layer
	tars   [][]byte // ready-made layers, after layers
}

func build(t testing.TB, spec imageSpec) built {
	t.Helper()
	out := built{blobs: map[digest.Digest][]byte{}}
	created := time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC)
	arch := spec.arch
	if arch == "" {
		arch = runtime.GOARCH
	}
	config := v1.Image{Created: &created, Platform: v1.Platform{Architecture: arch, OS: "linux"},
		Config: spec.config, RootFS: v1.RootFS{Type: "layers"}}
	m := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest}
	tars := [][]byte{}
	for _, l := range spec.layers {
		tars = append(tars, l.tar(t))
	}
	for _, data := range append(tars, spec.tars...) {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(data))
		config.History = append(config.History, v1.History{CreatedBy: "test"})
		blob := gzipped(t, data)
		d := digest.FromBytes(blob)
		out.blobs[d] = blob
		out.layers = append(out.layers, d)
		m.Layers = append(m.Layers, v1.Descriptor{MediaType: v1.MediaTypeImageLayerGzip, Digest: d, Size: int64(len(blob))})
	}
	out.config = mustJSON(t, config)
	d := digest.FromBytes(out.config)
	out.blobs[d] = out.config
	m.Config = v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: d, Size: int64(len(out.config))}
	out.manifest = mustJSON(t, m)
	return out
}

// index returns an image index over images, one per architecture.
func index(t testing.TB, images map[string]built) []byte {
	t.Helper()
	idx := v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex}
	for _, arch := range slices.Sorted(maps.Keys(images)) {
		idx.Manifests = append(idx.Manifests, v1.Descriptor{MediaType: v1.MediaTypeImageManifest,
			Digest: images[arch].digest(), Size: int64(len(images[arch].manifest)),
			Platform: &v1.Platform{OS: "linux", Architecture: arch}})
	}
	return mustJSON(t, idx)
}

func mustJSON(t testing.TB, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// sample returns a small two-layer image with everything an overlay has to get
// right: a deleted file, a replaced directory, owners, modes and links. mark
// makes images differ.
func sample(t testing.TB, mark string) built {
	return build(t, imageSpec{
		config: v1.ImageConfig{User: "1002:1003", Env: []string{"MARK=" + mark}, Cmd: []string{"/bin/sh"},
			Labels: map[string]string{"mark": mark}, WorkingDir: "/srv"},
		layers: []layer{
			{"etc": {typeflag: tar.TypeDir}, "etc/mark": {content: mark}, "etc/gone": {content: "deleted above"},
				"data":     {typeflag: tar.TypeDir, mode: 0o750, uid: 1002, gid: 1003},
				"data/old": {content: "hidden by an opaque directory"}, "data/owned": {content: "x", uid: 1002, gid: 1003, mode: 0o600},
				"bin": {typeflag: tar.TypeDir}, "bin/sh": {content: "#!", mode: 0o4755}, "bin/zsh": {typeflag: tar.TypeLink, link: "bin/sh", mode: 0o4755}},
			{"etc/.wh.gone": {}, "data": {typeflag: tar.TypeDir, mode: 0o750, uid: 1002, gid: 1003}, "data/.wh..wh..opq": {},
				"data/new": {content: "new", uid: 65533, gid: 65533}, "lib": {typeflag: tar.TypeSymlink, link: "usr/lib"}},
		},
	})
}
