package storage

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"path"
	"strings"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/docker/reference"
)

// FuzzReference: an image reference is refused with ErrBadReference, or its full
// form names a registry and either a tag or a digest, and stands for itself.
func FuzzReference(f *testing.F) {
	for _, s := range []string{
		"busybox", "docker.io/library/busybox:latest", "localhost:5000/a/b:c", "a@sha256:" + strings.Repeat("0", 64),
		"a:b@sha256:" + strings.Repeat("f", 64), "sha256:" + strings.Repeat("a", 64), strings.Repeat("a", 64), "abc", "[::1]:5000/x", "", "../x", "A", "a//b", "a:\x00",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		named, err := parseReference(s)
		if err != nil {
			if !errors.Is(err, ErrBadReference) {
				t.Errorf("%q: %v", s, err)
			}
			return
		}
		_, tagged := named.(reference.Tagged)
		_, digested := named.(reference.Digested)
		if tagged == digested || reference.Domain(named) == "" {
			t.Errorf("%q is %q", s, named)
		}
		again, err := parseReference(named.String())
		if err != nil || again.String() != named.String() {
			t.Errorf("%q is %q, and that is %v, %v", s, named, again, err)
		}
		tags, digests := splitNames([]string{named.String()})
		if len(tags)+len(digests) != 1 {
			t.Errorf("%q: tags %q, digests %q", s, tags, digests)
		}
	})
}

// FuzzImageID: only 64 hexadecimal digits are an ID.
func FuzzImageID(f *testing.F) {
	f.Add("sha256:" + strings.Repeat("a", 64))
	f.Add(strings.Repeat("0", 63))
	f.Fuzz(func(t *testing.T, s string) {
		if id := imageID(s); id != "" && (len(id) != 64 || strings.Trim(id, "0123456789abcdef") != "") {
			t.Errorf("%q has the ID %q", s, id)
		}
	})
}

// FuzzIndex: an index is refused with ErrCorrupt, or all it offers has a digest and runs
// here.
func FuzzIndex(f *testing.F) {
	f.Add([]byte(`{"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:` + strings.Repeat("a", 64) + `","platform":{"os":"linux","architecture":"amd64","variant":"v2"}}]}`))
	f.Add([]byte(`{"manifests":[{"digest":"sha256:../x"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		found, none, err := candidates(data, Platform{})
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Error(err)
			}
			return
		}
		for _, d := range found {
			if d.Digest.Validate() != nil {
				t.Errorf("digest %q", d.Digest)
			}
			if p := d.Platform; p != nil && p.Architecture != "" && rankOf(*p) < 0 {
				t.Errorf("platform %v does not run here", p)
			}
		}
		if len(none) > 1000 {
			t.Errorf("%d bytes are said of what is not there", len(none))
		}
	})
}

// FuzzManifest: a manifest of Docker's is refused, left alone, or becomes one of OCI's
// whose layers have types of OCI's.
func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"layers":[{"mediaType":"application/vnd.docker.image.rootfs.diff.tar.zstd","size":1}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		out, err := ociManifest(data)
		if err != nil || out == nil {
			return
		}
		var m v1.Manifest
		if err := json.Unmarshal(out, &m); err != nil {
			t.Fatal(err)
		}
		for _, l := range m.Layers {
			if !strings.HasPrefix(l.MediaType, v1.MediaTypeImageLayer) {
				t.Errorf("layer of type %q", l.MediaType)
			}
		}
		if again, err := ociManifest(out); err == nil && again == nil && m.MediaType != v1.MediaTypeImageManifest {
			t.Errorf("manifest of type %q", m.MediaType)
		}
	})
}

// FuzzLayerFilter: any stream is refused, or becomes a tar stream in which overlays find
// no marks of their own but whiteouts, each after all else of its name.
func FuzzLayerFilter(f *testing.F) {
	for _, c := range layerRules {
		for _, l := range c.layers {
			f.Add(tarEntries(f, l...))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<20 {
			return
		}
		var out bytes.Buffer
		limited := &limitedWriter{w: &out, left: 8 << 20} // a map of holes may be large
		if err := newLayerFilter(bytes.NewReader(data), limited, &lowers{}, func() error { return nil }).run(); err != nil {
			return
		}
		seen := map[string]bool{}
		for r := tar.NewReader(&out); ; {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if h.Typeflag == tar.TypeXGlobalHeader {
				continue
			}
			name := cleanName(h.Name)
			for key := range h.PAXRecords {
				if attr, ok := strings.CutPrefix(key, paxXattr); ok && ofOverlays(attr) {
					t.Errorf("%q has the attribute %q", name, attr)
				}
			}
			if base := path.Base(name); strings.HasPrefix(base, whiteoutPrefix) && base != opaqueMarker && seen[path.Join(path.Dir(name), strings.TrimPrefix(base, whiteoutPrefix))] {
				t.Errorf("whiteout %q of a file of the layer", name)
			}
			seen[name] = true
		}
	})
}

type limitedWriter struct {
	w    io.Writer
	left int
}

// Write implements io.Writer.
func (l *limitedWriter) Write(p []byte) (int, error) {
	if l.left -= len(p); l.left < 0 {
		return 0, errors.New("enough")
	}
	return l.w.Write(p)
}

// FuzzTOC: a table of contents that a layer is pulled by has each name once, and no
// whiteout of a name that it has.
func FuzzTOC(f *testing.F) {
	f.Add([]byte(`{"version":1,"entries":[{"type":"dir","name":"d/"},{"type":"reg","name":"d/f"},{"type":"chunk","name":"d/f"},{"type":"reg","name":"d/.wh.g"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if checkTOC(data) != "" {
			return
		}
		var doc struct {
			Entries []struct{ Type, Name string }
		}
		if json.Unmarshal(data, &doc) != nil {
			return
		}
		seen := map[string]bool{}
		for _, e := range doc.Entries {
			if name := cleanName(e.Name); e.Type != "chunk" && name != "" {
				if seen[name] {
					t.Errorf("%q is there twice", name)
				}
				seen[name] = true
			}
		}
	})
}
