package storage

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	cstorage "go.podman.io/storage"
)

// statedImage returns an image whose content is its name, with what its descriptors state
// changed: of the configuration, the layer, and the manifest (in an index).
type statedImage struct {
	name          string
	config, layer int64 // added to the size; -1<<32 for none
	entry         int64
	zstd          bool // as Docker's: the library is shown another manifest
}

const unstated = -1 << 32

func (i statedImage) put(t *testing.T, r *memoryRegistry) {
	t.Helper()
	change := func(size *int64, by int64) {
		if *size += by; by == unstated {
			*size = 0
		}
	}
	layer := tarEntries(t, "mark="+i.name)
	img, mime := build(t, imageSpec{tars: [][]byte{layer}}), v1.MediaTypeImageManifest
	if i.zstd {
		img, mime = dockerStyle(t, withZstd(t, layer), "application/vnd.docker.image.rootfs.diff.tar.zstd"), dockerManifest
	}
	img = remake(t, img, func(m *v1.Manifest) { change(&m.Config.Size, i.config); change(&m.Layers[0].Size, i.layer) })
	d := on(r.put(img, mime, i.name+"-single"), runtime.GOARCH, "")
	change(&d.Size, i.entry)
	r.index(t, v1.MediaTypeImageIndex, i.name+"-index", d)
	r.index(t, dockerList, i.name+"-list", d)
	inner := r.index(t, v1.MediaTypeImageIndex, "", d)
	r.index(t, v1.MediaTypeImageIndex, i.name+"-nested", inner)
	change(&inner.Size, i.entry)
	r.index(t, v1.MediaTypeImageIndex, i.name+"-inner", inner)
}

// layout writes a tag of the registry as an OCI layout, and as an archive of one.
func (r *memoryRegistry) layout(t *testing.T, tag, dir string) (archive string) {
	t.Helper()
	top := r.manifests[tag]
	idx := v1.Index{Manifests: []v1.Descriptor{{MediaType: top.mime, Digest: digest.FromBytes(top.data), Size: int64(len(top.data))}}}
	idx.SchemaVersion = 2
	files := map[string]string{"oci-layout": `{"imageLayoutVersion":"1.0.0"}`, "index.json": string(mustJSON(t, idx))}
	for _, m := range r.manifests {
		files["blobs/sha256/"+digest.FromBytes(m.data).Encoded()] = string(m.data)
	}
	for d, blob := range r.blobs {
		files["blobs/sha256/"+digest.Digest(d).Encoded()] = string(blob)
	}
	saved := newSaved(t)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(dir, name), files[name])
		saved.entry(&tar.Header{Name: name, Typeflag: tar.TypeReg, Size: int64(len(files[name]))}, []byte(files[name]))
	}
	return saved.write(dir + ".tar")
}

// TestStatedSizes: what is not as large as its descriptor states is refused, wherever it
// is stated, however the image comes, and also where the store has it. A size that is not
// stated, or 0, is not compared, but for that of the configuration.
func TestStatedSizes(t *testing.T) {
	r := startMemoryRegistry(t)
	for _, image := range []statedImage{
		{name: "config-more", config: 1}, {name: "config-less", config: -1}, {name: "layer-more", layer: 1}, {name: "layer-less", layer: -1},
		{name: "zstd-more", layer: 1, zstd: true}, {name: "entry-more", entry: 1}, {name: "entry-less", entry: -1},
		{name: "right"}, {name: "config-none", config: unstated}, {name: "layer-none", layer: unstated},
		{name: "entry-none", entry: unstated}, {name: "zstd-none", layer: unstated, zstd: true},
	} {
		image.put(t, r)
	}
	statedImage{name: "right", layer: 1}.rename(t, r, "known")
	for name, c := range map[string]struct {
		change func(*Options)
		forms  []string
		load   bool
	}{
		"streamed": {func(*Options) {}, []string{"index", "single", "list", "nested", "inner"}, true},
		"policy": {func(o *Options) { // what is not accepted from everywhere is not streamed
			writeFile(t, o.PolicyJSON, `{"default":[{"type":"reject"}],"transports":{"docker":{"`+r.host+`":[{"type":"insecureAcceptAnything"}]}}}`)
		}, []string{"index"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			o := testOptions(t, t.TempDir(), DriverNative)
			insecureConf(t, o, r.host)
			c.change(&o)
			s := openStore(t, o)
			layouts := t.TempDir()
			for i, form := range c.forms {
				try := func(image string, accepted bool) {
					tag := image + "-" + form
					_, err := s.Images.Pull(context.Background(), PullRequest{Ref: r.host + "/x:" + tag})
					wantStated(t, "pull of "+tag, err, accepted)
					if !c.load {
						return
					}
					dir := filepath.Join(layouts, tag)
					archive := r.layout(t, tag, dir)
					_, err = s.Images.Load(context.Background(), dir)
					wantStated(t, "load of "+tag, err, accepted)
					if i == 0 {
						_, err = s.Images.Load(context.Background(), archive)
						wantStated(t, "load of an archive of "+tag, err, accepted)
					}
				}
				wrong, right := []string{"layer-more"}, []string{"right"}
				if form != "single" {
					wrong = append(wrong, "entry-more")
				}
				if i == 0 {
					wrong = append(wrong, "config-more", "config-none", "zstd-more", "config-less", "layer-less", "entry-less")
					right = append(right, "layer-none", "entry-none", "zstd-none")
				}
				for _, image := range wrong {
					try(image, false)
				}
				wantClean(t, s, 0)
				for _, image := range right {
					try(image, true)
				}
				try("known", false)
				removeAll(t, s)
			}
		})
	}
}

// wantStated fails the test unless err is nil, or says that a size is not the one stated.
func wantStated(t *testing.T, what string, err error, accepted bool) {
	t.Helper()
	switch {
	case accepted && err != nil:
		t.Errorf("%s: %v", what, err)
	case !accepted && (!errors.Is(err, ErrCorrupt) || !strings.Contains(fmt.Sprint(err), "states")):
		t.Errorf("%s: %v, want ErrCorrupt", what, err)
	}
}

// rename is put, with the tags of another name.
func (i statedImage) rename(t *testing.T, r *memoryRegistry, name string) {
	t.Helper()
	before := maps.Clone(r.manifests)
	i.put(t, r)
	for _, form := range []string{"single", "index", "list", "nested", "inner"} {
		tag := i.name + "-" + form
		r.manifests[name+"-"+form], r.manifests[tag] = r.manifests[tag], before[tag]
	}
}

// removeAll removes all images.
func removeAll(t *testing.T, s *Store) {
	t.Helper()
	list, err := s.Images.List(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range list {
		if err := s.Images.Remove(context.Background(), img.ID); err != nil {
			t.Fatal(err)
		}
	}
}

// TestStatedSizeOfChanged: a layer with a name twice is not refused for the size of what it
// was changed into, where the store has it: in an image that is pulled, on another layer, or
// as a former version has noted it.
func TestStatedSizeOfChanged(t *testing.T) {
	r := startMemoryRegistry(t)
	twice := tarEntries(t, "f=1", "f="+strings.Repeat("2", 10_000))
	images := map[string]built{}
	for tag, tars := range map[string][][]byte{
		"one": {twice, tarEntries(t, "a=a")}, "two": {twice, tarEntries(t, "b=b")}, "above": {tarEntries(t, "c=c"), twice},
	} {
		images[tag] = build(t, imageSpec{tars: tars})
		r.put(images[tag], v1.MediaTypeImageManifest, tag)
	}
	for _, former := range []bool{false, true} {
		o := testOptions(t, t.TempDir(), DriverNative)
		insecureConf(t, o, r.host)
		s := openStore(t, o)
		if former {
			flags := map[string]any{flagChanged: true}
			once, size := tarEntries(t, "f=2"), int64(11_776)
			if _, _, err := s.Images.store.cs.PutLayer(digest.FromBytes(twice).Encoded(), "", nil, "", false, &cstorage.LayerOptions{
				OriginalDigest: images["one"].layers[0], OriginalSize: &size, UncompressedDigest: digest.FromBytes(twice), Flags: flags,
			}, bytes.NewReader(once)); err != nil {
				t.Fatal(err)
			}
		}
		for _, tag := range []string{"one", "two", "above"} {
			if _, err := s.Images.Pull(context.Background(), PullRequest{Ref: r.host + "/x:" + tag}); err != nil {
				t.Errorf("pull of %s, former %t: %v", tag, former, err)
			}
		}
		saved := newSaved(t)
		below := tarEntries(t, "d=d")
		saved.file("1.tar", below)
		saved.file("2.tar", twice)
		saved.file("c.json", build(t, imageSpec{tars: [][]byte{below, twice}}).config)
		saved.json("manifest.json", []item{{"Config": "c.json", "Layers": []string{"1.tar", "2.tar"}}})
		if _, err := s.Images.Load(context.Background(), saved.write(filepath.Join(t.TempDir(), "saved.tar"))); err != nil {
			t.Errorf("load of layers that are not compressed, former %t: %v", former, err)
		}
	}
}
