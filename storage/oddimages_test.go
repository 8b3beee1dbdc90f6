package storage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// memoryRegistry serves manifests, by tag and digest, with any type, and blobs.
type memoryRegistry struct {
	host string

	mu        sync.Mutex
	manifests map[string]typedManifest
	blobs     map[string][]byte
}

type typedManifest struct {
	mime string
	data []byte
}

func startMemoryRegistry(t testing.TB) *memoryRegistry {
	t.Helper()
	r := &memoryRegistry{manifests: map[string]typedManifest{}, blobs: map[string][]byte{}}
	server := httptest.NewServer(http.HandlerFunc(r.serve))
	t.Cleanup(server.Close)
	r.host = strings.TrimPrefix(server.URL, "http://")
	return r
}

func (r *memoryRegistry) serve(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	parts := strings.Split(req.URL.Path, "/")
	last := parts[len(parts)-1]
	switch {
	case req.URL.Path == "/v2/":
	case strings.Contains(req.URL.Path, "/manifests/"):
		m, ok := r.manifests[last]
		if !ok {
			http.Error(w, `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"unknown"}]}`, http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", m.mime)
		_, _ = w.Write(m.data)
	default:
		blob, ok := r.blobs[last]
		if !ok {
			http.Error(w, `{"errors":[{"code":"BLOB_UNKNOWN","message":"unknown"}]}`, http.StatusNotFound)
			return
		}
		_, _ = w.Write(blob)
	}
}

// put adds an image, and a tag where one is given.
func (r *memoryRegistry) put(img built, mime, tag string) v1.Descriptor {
	r.mu.Lock()
	defer r.mu.Unlock()
	for d, blob := range img.blobs {
		r.blobs[d.String()] = blob
	}
	return r.manifest(img.manifest, mime, tag)
}

// index adds an index.
func (r *memoryRegistry) index(t testing.TB, mime, tag string, entries ...v1.Descriptor) v1.Descriptor {
	t.Helper()
	idx := v1.Index{MediaType: mime, Manifests: entries}
	idx.SchemaVersion = 2
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.manifest(mustJSON(t, idx), mime, tag)
}

func (r *memoryRegistry) manifest(data []byte, mime, tag string) v1.Descriptor {
	d := digest.FromBytes(data)
	r.manifests[d.String()] = typedManifest{mime, data}
	if tag != "" {
		r.manifests[tag] = typedManifest{mime, data}
	}
	return v1.Descriptor{MediaType: mime, Digest: d, Size: int64(len(data))}
}

func on(d v1.Descriptor, arch, variant string) v1.Descriptor {
	d.Platform = &v1.Platform{OS: "linux", Architecture: arch, Variant: variant}
	return d
}

const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
)

// remake changes the manifest of an image.
func remake(t testing.TB, img built, change func(*v1.Manifest)) built {
	t.Helper()
	var m v1.Manifest
	if err := json.Unmarshal(img.manifest, &m); err != nil {
		t.Fatal(err)
	}
	change(&m)
	img.manifest = mustJSON(t, m)
	return img
}

// docker makes an image one of Docker's, with layers of this type.
func dockerStyle(t testing.TB, img built, layer string) built {
	return remake(t, img, func(m *v1.Manifest) {
		m.MediaType, m.Config.MediaType = dockerManifest, "application/vnd.docker.container.image.v1+json"
		for i := range m.Layers {
			m.Layers[i].MediaType = layer
		}
	})
}

// withZstd compresses the layers of an image with zstd.
func withZstd(t testing.TB, layers ...[]byte) built {
	img := build(t, imageSpec{tars: layers})
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	return remake(t, img, func(m *v1.Manifest) {
		for i := range m.Layers {
			blob := w.EncodeAll(layers[i], nil)
			d := digest.FromBytes(blob)
			img.blobs[d] = blob
			m.Layers[i].Digest, m.Layers[i].Size = d, int64(len(blob))
		}
	})
}

// TestLargeFramed: a layer that is presented without its first frames does not count twice
// for what its manifest states.
func TestLargeFramed(t *testing.T) {
	r := startMemoryRegistry(t)
	o := testOptions(t, t.TempDir(), DriverNative)
	insecureConf(t, o, r.host)
	s := openStore(t, o)
	random := make([]byte, 24<<20)
	rand.NewChaCha8([32]byte{}).Read(random)
	img := withZstd(t, layer{"large": {content: string(random)}}.tar(t))
	img = remake(t, img, func(m *v1.Manifest) { withFrame(img, m) })
	r.put(img, v1.MediaTypeImageManifest, "1")
	if _, err := s.Images.Pull(t.Context(), PullRequest{Ref: r.host + "/x:1"}); err != nil {
		t.Fatal(err)
	}
	wantClean(t, s, 1)
}

// withFrame puts skippable frames in front of the first layer of a manifest.
func withFrame(img built, m *v1.Manifest) {
	blob := append([]byte("\x50\x2a\x4d\x18\x04\x00\x00\x00abcd\x5f\x2a\x4d\x18\x00\x00\x00\x00"), img.blobs[m.Layers[0].Digest]...)
	d := digest.FromBytes(blob)
	img.blobs[d] = blob
	m.Layers[0] = v1.Descriptor{MediaType: v1.MediaTypeImageLayerZstd, Digest: d, Size: int64(len(blob))}
}

// TestOddImages: what registries serve beside plain images.
func TestOddImages(t *testing.T) {
	r := startMemoryRegistry(t)
	o := testOptions(t, t.TempDir(), DriverNative)
	insecureConf(t, o, r.host)
	s := openStore(t, o)
	mark := func(name string) []byte { return tarEntries(t, "mark="+name) }
	img := func(name, arch string) built { return build(t, imageSpec{arch: arch, tars: [][]byte{mark(name)}}) }
	here, oci := runtime.GOARCH, v1.MediaTypeImageManifest
	foreign := on(r.put(img("foreign", "s390x"), oci, ""), "s390x", "")

	r.put(dockerStyle(t, withZstd(t, mark("zstd")), "application/vnd.docker.image.rootfs.diff.tar.zstd"), dockerManifest, "zstd")
	zstdChild := dockerStyle(t, withZstd(t, mark("zstd-list")), "application/vnd.docker.image.rootfs.diff.tar.zstd")
	r.index(t, dockerList, "zstd-list", on(r.put(zstdChild, dockerManifest, ""), here, ""))
	framed := func(name string) built {
		i := withZstd(t, mark(name))
		return remake(t, i, func(m *v1.Manifest) { withFrame(i, m) })
	}
	r.put(framed("skippable"), oci, "skippable")
	r.index(t, v1.MediaTypeImageIndex, "skippable-index", foreign, on(r.put(framed("skippable-index"), oci, ""), here, ""))
	r.put(dockerStyle(t, framed("skippable-docker"), "application/vnd.docker.image.rootfs.diff.tar.zstd"), dockerManifest, "skippable-docker")
	r.put(img("octets", here), "application/octet-stream", "octets")
	r.put(dockerStyle(t, img("text", here), "application/vnd.docker.image.rootfs.diff.tar.gzip"), "text/plain", "text")
	nested := func(tag string, d ...v1.Descriptor) v1.Descriptor {
		return r.index(t, v1.MediaTypeImageIndex, tag, d...)
	}
	nested("nested", nested("", foreign), nested("", foreign, on(r.put(img("nested", here), oci, ""), here, "")))
	nested("nested-platform", on(nested("", on(r.put(img("nested-platform", here), oci, ""), here, "")), here, ""))
	r.index(t, "application/octet-stream", "octet-index", on(r.put(img("octet-index", here), oci, ""), here, ""))
	nested("attested", v1.Descriptor{MediaType: oci, Digest: foreign.Digest, Size: foreign.Size, Platform: &v1.Platform{OS: "unknown", Architecture: "unknown"},
		Annotations: map[string]string{"vnd.docker.reference.type": "attestation-manifest"}}, on(r.put(img("attested", here), oci, ""), here, ""))
	r.put(remake(t, img("docker-config", here), func(m *v1.Manifest) { m.Config.MediaType = "application/vnd.docker.container.image.v1+json" }), oci, "docker-config")
	want := []string{"skippable", "skippable-index", "skippable-docker", "docker-config", "zstd", "zstd-list", "octets", "text", "nested", "nested-platform", "octet-index", "attested"}
	if here == "amd64" {
		level := fmt.Sprintf("v%d", processorLevel())
		nested("variant", foreign, on(r.put(img("variant", here), oci, ""), here, level))
		nested("both", on(r.put(img("more", here), oci, ""), here, "v2"), on(r.put(img("both", here), oci, ""), here, ""))
		nested("i386", foreign, on(r.put(img("i386", "386"), oci, ""), "386", ""))
		r.index(t, dockerList, "i386-list", foreign, on(r.put(img("i386-list", "386"), oci, ""), "386", ""))
		r.put(img("x86_64", "x86_64"), oci, "x86_64")
		want = append(want, "variant", "both", "i386", "i386-list", "x86_64")
	}
	for i, tag := range want {
		t.Run(tag, func(t *testing.T) {
			top := digest.FromBytes(r.manifests[tag].data)
			for _, ref := range []string{r.host + "/a/" + tag + ":" + tag, r.host + "/b/" + tag + "@" + top.String()} {
				got := pullRef(t, s, ref)
				if !strings.Contains(strings.Join(got.RepoDigests, " "), top.String()) {
					t.Errorf("RepoDigests %v, want %s", got.RepoDigests, top)
				}
				root, err := s.Rootfs.Create(context.Background(), RootfsSpec{ID: containerID(byte(i)), ImageID: got.ID})
				if err != nil {
					t.Fatal(err)
				}
				if text := mustRead(t, filepath.Join(root.Path, "mark")); text != tag {
					t.Errorf("%s is the image %s", ref, text)
				}
				pullRef(t, s, ref) // and again, when it is there
			}
		})
	}
	// A policy still judges the image as it came.
	writeFile(t, o.PolicyJSON, `{"default":[{"type":"reject"}]}`)
	for _, tag := range []string{"nested", "zstd"} {
		if _, err := s.Images.Pull(context.Background(), PullRequest{Ref: r.host + "/c/" + tag + ":" + tag}); !errors.Is(err, ErrSignature) {
			t.Errorf("%s with a policy that rejects all: %v", tag, err)
		}
	}
}

// TestOddImagesRefused: what cannot run here, or is wrong, and how it is said.
func TestOddImagesRefused(t *testing.T) {
	r := startMemoryRegistry(t)
	o := testOptions(t, t.TempDir(), DriverNative)
	insecureConf(t, o, r.host)
	s := openStore(t, o)
	oci, layer := v1.MediaTypeImageManifest, tarEntries(t, "f=f")
	img := build(t, imageSpec{tars: [][]byte{layer}})
	foreign := on(r.put(build(t, imageSpec{arch: "s390x", tars: [][]byte{layer}}), oci, "foreign"), "s390x", "")
	r.index(t, v1.MediaTypeImageIndex, "foreign-index", foreign, on(r.put(img, oci, ""), "riscv64", ""))
	r.index(t, dockerList, "foreign-list", foreign)
	r.index(t, v1.MediaTypeImageIndex, "foreign-nested", r.index(t, v1.MediaTypeImageIndex, "", foreign))
	r.index(t, v1.MediaTypeImageIndex, "empty-index")
	deep := on(r.put(img, oci, ""), runtime.GOARCH, "")
	for range 8 {
		deep = r.index(t, v1.MediaTypeImageIndex, "deep", deep)
	}
	r.put(dockerStyle(t, img, "application/vnd.acme.something"), dockerManifest, "layer-type")
	r.put(remake(t, img, func(m *v1.Manifest) { m.Layers[0].MediaType += "+encrypted" }), oci, "encrypted")
	r.put(remake(t, img, func(m *v1.Manifest) { m.Config.MediaType = "" }), oci, "untyped")
	r.put(remake(t, img, func(m *v1.Manifest) { m.Config.Digest = "md5:" + digest.Digest(m.Config.Digest.Encoded()[:32]) }), oci, "md5")
	r.index(t, v1.MediaTypeImageIndex, "mixed-index", on(r.put(remake(t, img, func(m *v1.Manifest) {
		m.Config.MediaType = "application/vnd.docker.container.image.v1+json"
	}), oci, ""), runtime.GOARCH, ""))
	config := func(tag, text string) {
		blob := []byte(text)
		changed := remake(t, img, func(m *v1.Manifest) {
			m.Config.Digest, m.Config.Size = digest.FromBytes(blob), int64(len(blob))
		})
		changed.blobs = map[digest.Digest][]byte{digest.FromBytes(blob): blob}
		r.put(changed, oci, tag)
	}
	config("created", `{"architecture":"`+runtime.GOARCH+`","os":"linux","created":"yesterday","rootfs":{"type":"layers","diff_ids":[]}}`)
	config("no-json", `{"architecture":`)
	config("wrong-type", `{"architecture":7}`)
	r.mu.Lock()
	r.manifest([]byte(`<html>`), "text/html", "html")
	r.manifest([]byte(`{"schemaVersion":2,"manifests":[{"digest":"sha256:../../x","size":1}]}`), v1.MediaTypeImageIndex, "bad-digest")
	r.mu.Unlock()
	for tag, want := range map[string]struct {
		err  error
		word string
	}{
		"foreign":        {ErrUnsupported, "linux/s390x"},
		"foreign-index":  {ErrUnsupported, "it has images for linux/riscv64, linux/s390x"},
		"foreign-list":   {ErrUnsupported, "linux/s390x"},
		"foreign-nested": {ErrUnsupported, "no image for linux/" + runtime.GOARCH},
		"empty-index":    {ErrUnsupported, "it has no images"},
		"deep":           {ErrUnsupported, "deep"},
		"layer-type":     {ErrUnsupported, "application/vnd.acme.something"},
		"encrypted":      {ErrUnsupported, "encrypted"},
		"untyped":        {ErrUnsupported, "artifact"},
		"md5":            {ErrUnsupported, "digest"},
		"mixed-index":    {ErrUnsupported, "mixed"},
		"created":        {ErrCorrupt, "yesterday"},
		"no-json":        {ErrCorrupt, "configuration"},
		"wrong-type":     {ErrCorrupt, "configuration"},
		"html":           {ErrRegistryUnavailable, "web page"},
		"bad-digest":     {ErrCorrupt, "digest"},
	} {
		_, err := s.Images.Pull(context.Background(), PullRequest{Ref: r.host + "/x:" + tag})
		if !errors.Is(err, want.err) || !strings.Contains(fmt.Sprint(err), want.word) {
			t.Errorf("%s: %v; want %v with %q", tag, err, want.err, want.word)
		}
	}
	wantClean(t, s, 0)
}

// TestCorruptLayers: a layer that is what its digest says and cannot be unpacked is the
// image's fault, not the registry's.
func TestCorruptLayers(t *testing.T) {
	r := startMemoryRegistry(t)
	o := testOptions(t, t.TempDir(), DriverNative)
	insecureConf(t, o, r.host)
	s := openStore(t, o)
	layer := tarEntries(t, "f="+random(100000))
	zipped := gzipped(t, layer)
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	z := w.EncodeAll(layer, nil)
	link := tarEntries(t, "h=>nowhere")
	for tag, blob := range map[string][]byte{
		"gzip-cut": zipped[:len(zipped)-100], "gzip-broken": append(zipped[:5000:5000], random(50000)...),
		"zstd-cut": z[:len(z)-100], "zstd-junk": append(z[:len(z):len(z)], "junk"...),
		"zstd-skippable-cut": []byte("\x50\x2a\x4d\x18\xff\x00\x00\x00\x01"), "tar-cut": gzipped(t, layer[:50000]), "tar-broken": gzipped(t, []byte(random(5000))),
		"link": gzipped(t, link),
	} {
		changed := remake(t, build(t, imageSpec{tars: [][]byte{layer}}), func(m *v1.Manifest) {
			m.Layers[0].Digest, m.Layers[0].Size = digest.FromBytes(blob), int64(len(blob))
		})
		changed.blobs[digest.FromBytes(blob)] = blob
		r.put(changed, v1.MediaTypeImageManifest, tag)
		_, err := s.Images.Pull(context.Background(), PullRequest{Ref: r.host + "/x:" + tag})
		t.Log(err)
		if !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt", tag, err)
		}
		wantClean(t, s, 0)
	}
}
