package attack

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/tests/node"
)

// contentConfig has limits so low that small bombs reach them.
const contentConfig = node.Bridge + `
[images]
pull_timeout = "5s"
[images.limits]
memory = "256Mi"
size = "256Mi"
entries = 1000
layers = 20
`

// maxGrowth is what one hostile image may leave in the server's memory, in bytes.
const maxGrowth = 32 << 20

// contentNode is a node beside a hostile registry.
type contentNode struct {
	*node.Node
	registry *hostileRegistry
	good     string // an image that is as it should be
}

func startContentNode(t *testing.T) *contentNode {
	r := startHostileRegistry(t)
	good := newImage(files(map[string]string{"good": "good"}))
	n := &contentNode{Node: node.Start(t, node.Options{Config: contentConfig, Registries: r.conf()}), registry: r}
	n.good = r.put("good", good.finish(t), good.blobs)
	return n
}

// rss returns the server's memory in bytes.
func (n *contentNode) rss(t *testing.T) int64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.Server()))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kib << 10
}

// pull pulls and returns the image's ID.
func (n *contentNode) pull(ctx context.Context, ref string) (string, error) {
	resp, err := n.CRI().PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	return resp.GetImageRef(), err
}

// repelled fails the test unless attack ends with an error that contains want, while
// another image is pulled, and leaves the server's memory and store as they were.
func (n *contentNode) repelled(t *testing.T, want string, attack func(context.Context) error) {
	t.Helper()
	n = &contentNode{n.For(t), n.registry, n.good}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	before := n.rss(t)
	done := make(chan error, 1)
	go func() { done <- attack(ctx) }()
	n.others(t)
	err := <-done
	switch {
	case err == nil:
		t.Error("it got through")
	case !strings.Contains(err.Error(), want):
		t.Errorf("the error is %v, want %q in it", err, want)
	case len(err.Error()) > 16<<10:
		t.Errorf("the error has %d bytes", len(err.Error()))
	}
	if after := n.rss(t); after > before+maxGrowth {
		t.Errorf("the server has grown from %d to %d MiB", before>>20, after>>20)
	}
	if t.Failed() {
		return // what got through is there, and waiting for its end is in vain
	}
	n.others(t)
	n.nothingLeft(t)
}

// others fails the test unless another image can be removed, pulled and listed.
func (n *contentNode) others(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cri := n.CRI()
	_, err := cri.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: n.good}})
	_, pullErr := n.pull(ctx, n.good)
	list, listErr := cri.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err := errors.Join(err, pullErr, listErr); err != nil {
		t.Errorf("meanwhile: %v", err)
	}
	for _, i := range list.GetImages() {
		for _, tag := range i.RepoTags {
			if tag != n.good {
				t.Errorf("the image %s is there", tag)
			}
		}
	}
}

// nothingLeft fails the test for files of transfers that are over.
func (n *contentNode) nothingLeft(t *testing.T) {
	t.Helper()
	root := filepath.Join(n.DataDir, "storage")
	node.Eventually(t, "files of the transfer are removed", func() error {
		for _, dir := range []string{"subpod/tmp", "overlay/staging", "overlay/tempdirs", "overlay-layers/tmp"} {
			if left, err := os.ReadDir(filepath.Join(root, dir)); err == nil && len(left) > 0 {
				return fmt.Errorf("%s holds %v", dir, left)
			}
		}
		layers, _ := filepath.Glob(filepath.Join(root, "overlay", strings.Repeat("[0-9a-f]", 64)))
		if len(layers) > 1 {
			return fmt.Errorf("%d layers, want that of the good image", len(layers))
		}
		return nil
	})
}

// TestHostileImages: images as weapons. Each is refused by an error that says why,
// while others are pulled, and leaves nothing.
func TestHostileImages(t *testing.T) {
	n := startContentNode(t)
	n.others(t)
	small := files(map[string]string{"x": "x"})
	many := map[string]string{}
	for i := range 2000 {
		many[fmt.Sprintf("f%d", i)] = ""
	}
	for _, a := range []struct {
		name  string
		want  string
		image *image
	}{
		{"sparse map of 200 MiB", "", newImage(sparseBomb(200 << 20))},
		{"xz dictionary of 4 GiB", "image is not supported", newImage(xzBomb())},
		{"gzip bomb", "images.limits.size", newImage(zeroBomb(512 << 20))},
		{"more files than allowed", "images.limits.entries", newImage(files(many))},
		{"more layers than allowed", "images.limits.layers", newImage(func() (l []layer) {
			for range 50 {
				l = append(l, small)
			}
			return l
		}()...)},
		{"long USER", "images.limits.user", newImage(small).with(func(i *image) { i.config.Config.User = strings.Repeat("u", 1000) })},
		{"large environment", "images.limits.env", newImage(small).with(func(i *image) { i.config.Config.Env = []string{"A=" + strings.Repeat("x", 300<<10)} })},
		{"many variables", "images.limits.env", newImage(small).with(func(i *image) {
			for k := range 20000 {
				i.config.Config.Env = append(i.config.Config.Env, fmt.Sprintf("A%d=%020d", k, k))
			}
		})},
		{"large labels", "images.limits.labels", newImage(small).with(func(i *image) { i.config.Config.Labels = map[string]string{"l": strings.Repeat("x", 300<<10)} })},
		{"large configuration", "images.limits.config", newImage(small).with(func(i *image) { i.config.Author = strings.Repeat("x", 2<<20) })},
		{"large manifest", "images.limits.manifest", newImage(small).with(func(i *image) {
			i.manifest.Annotations = map[string]string{"a": strings.Repeat("x", 2<<20)}
		})},
		{"layer of a negative size", "image is corrupt", newImage(small).with(func(i *image) { i.manifest.Layers[0].Size = -7 })},
		{"layer larger than stated", "image is corrupt", newImage(zeroBomb(8<<20), plainLayer(make([]byte, 40<<20))).with(func(i *image) {
			for k := range i.manifest.Layers {
				i.manifest.Layers[k].Size = 1
			}
		})},
		{"other content than stated", "image is corrupt", newImage(small).with(func(i *image) {
			i.blobs[i.manifest.Layers[0].Digest] = files(map[string]string{"evil": "evil"}).blob
		})},
		{"other diff ID than stated", "image is corrupt", newImage(small).with(func(i *image) {
			i.config.RootFS.DiffIDs[0] = digest.FromString("other")
		})},
	} {
		t.Run(a.name, func(t *testing.T) {
			ref := n.registry.put("hostile", a.image.finish(t), a.image.blobs)
			n.repelled(t, a.want, func(ctx context.Context) error {
				_, err := n.pull(ctx, ref)
				return err
			})
		})
	}
	t.Run("large index", func(t *testing.T) {
		index := v1.Index{MediaType: v1.MediaTypeImageIndex, Annotations: map[string]string{"a": strings.Repeat("x", 2<<20)}}
		index.SchemaVersion = 2
		ref := n.registry.put("index", encode(t, index), nil)
		n.repelled(t, "images.limits.manifest", func(ctx context.Context) error {
			_, err := n.pull(ctx, ref)
			return err
		})
	})
	t.Run("index over a hostile image", func(t *testing.T) {
		bomb := newImage(small).with(func(i *image) { i.config.Config.User = strings.Repeat("u", 1000) })
		raw := bomb.finish(t)
		index := v1.Index{MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{{
			MediaType: v1.MediaTypeImageManifest, Digest: digest.FromBytes(raw), Size: int64(len(raw)), Platform: &bomb.config.Platform}}}
		index.SchemaVersion = 2
		ref := n.registry.put("indexed", encode(t, index), bomb.blobs)
		n.repelled(t, "images.limits.user", func(ctx context.Context) error {
			_, err := n.pull(ctx, ref)
			return err
		})
	})
}

// TestHostileRegistries: registries that send without end, or next to nothing.
func TestHostileRegistries(t *testing.T) {
	n := startContentNode(t)
	n.others(t)
	img := newImage(plainLayer(append(header("x", '0', 0), make([]byte, 1024)...)))
	n.registry.put("img", img.finish(t), img.blobs)
	for _, a := range []struct{ name, ref, want string }{
		{"layer without end", "endless/img", "larger than its manifest states"},
		{"manifest without end", "manifest/img", "image exceeds a limit"},
	} {
		t.Run(a.name, func(t *testing.T) {
			n.repelled(t, a.want, func(ctx context.Context) error {
				_, err := n.pull(ctx, n.registry.host+"/"+a.ref+":1")
				return err
			})
		})
	}
	t.Run("a byte a second", func(t *testing.T) {
		n.repelled(t, "", func(ctx context.Context) error {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			done := make(chan error, 1)
			go func() {
				_, err := n.pull(ctx, n.registry.host+"/slow/img:1")
				done <- err
			}()
			node.Eventually(t, "the slow pull has begun", func() error {
				if n.registry.slowAnswers() == 0 {
					return errors.New("no blob was asked for")
				}
				return nil
			})
			n.others(t) // a pull begins and ends while that one goes on
			cancel()
			return <-done
		})
	})
}

// TestLayerEscape: a layer's names and links lead nowhere but into the layer.
func TestLayerEscape(t *testing.T) {
	n := startContentNode(t)
	secret := filepath.Join(n.Home, "secret")
	target := filepath.Join(n.Home, "written")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	up := strings.Repeat("../", 20)
	for i, l := range []layer{
		files(map[string]string{up + target: "x"}),
		files(map[string]string{target: "x"}),
		links(map[string]string{"l": "/"}, "l"+target),
		links(map[string]string{"l": up}, "l"+target),
		links(map[string]string{"l": "/proc/self/root"}, "l"+target),
		links(map[string]string{"l": "/proc/self/cwd"}, "l/"+up+target),
		links(map[string]string{"l": filepath.Dir(secret)}, "l/.wh.secret"),
		hardLink(secret), hardLink(up + secret),
	} {
		img := newImage(l)
		ref := n.registry.put(fmt.Sprintf("escape%d", i), img.finish(t), img.blobs)
		_, err := n.pull(t.Context(), ref) // whether it is refused does not matter
		t.Logf("%d: %.500v", i, err)
		if _, err := os.Lstat(target); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("%d: a file out of the layer was written (%v)", i, err)
		}
		st, err := os.Stat(secret)
		if err != nil {
			t.Fatalf("%d: %v", i, err)
		}
		if st.Sys().(*syscall.Stat_t).Nlink != 1 {
			t.Fatalf("%d: a file out of the layer has a link in it", i)
		}
	}
}

// archiveEntry is a file of an archive.
type archiveEntry struct {
	kind byte // 0: regular file
	data []byte
	link string
}

// layoutOf returns the files of an OCI layout of the image.
func layoutOf(t *testing.T, name string, img *image) map[string]archiveEntry {
	raw := img.finish(t)
	index := v1.Index{Manifests: []v1.Descriptor{{MediaType: v1.MediaTypeImageManifest, Digest: digest.FromBytes(raw), Size: int64(len(raw)),
		Annotations: map[string]string{v1.AnnotationRefName: name}}}}
	index.SchemaVersion = 2
	out := map[string]archiveEntry{"oci-layout": {data: []byte(`{"imageLayoutVersion":"1.0.0"}`)}, "index.json": {data: encode(t, index)}}
	for d, b := range img.blobs {
		out[blobName(d)] = archiveEntry{data: b}
	}
	return out
}

func blobName(d digest.Digest) string { return "blobs/sha256/" + d.Encoded() }

// writeArchive writes files as a tar archive.
func writeArchive(t *testing.T, path string, files map[string]archiveEntry) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	tw := tar.NewWriter(f)
	for name, e := range files {
		h := &tar.Header{Name: name, Mode: 0o644, Typeflag: e.kind, Linkname: e.link, Size: int64(len(e.data))}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write(e.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
}

// writeDirectory writes files as a directory.
func writeDirectory(t *testing.T, dir string, files map[string]archiveEntry) {
	t.Helper()
	for name, e := range files {
		path := filepath.Join(dir, name)
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		switch e.kind {
		case tar.TypeFifo:
			err = errors.Join(err, syscall.Mkfifo(path, 0o644))
		case tar.TypeSymlink:
			err = errors.Join(err, os.Symlink(e.link, path))
		case tar.TypeLink: // has no meaning here
		default:
			err = errors.Join(err, os.WriteFile(path, e.data, 0o644))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestHostileArchives: archives and directories for load. Each is refused, nothing out
// of it is read, and no other request waits.
func TestHostileArchives(t *testing.T) {
	n := startContentNode(t)
	n.others(t)
	outside := filepath.Join(n.DataDir, "outside") // which the server sees with every view
	if err := os.Mkdir(outside, 0o700); err != nil {
		t.Fatal(err)
	}
	victim := newImage(files(map[string]string{"secret": "secret"}))
	writeDirectory(t, outside, layoutOf(t, "example.com/secret:1", victim))
	config := func(i *image) string { return blobName(i.manifest.Config.Digest) }
	layerName := func(i *image) string { return blobName(i.manifest.Layers[0].Digest) }
	manifestName := func(i *image) string { return blobName(digest.FromBytes(i.finish(t))) }
	for _, kind := range []struct {
		name  string
		entry func(target string) archiveEntry
	}{
		{"FIFO", func(string) archiveEntry { return archiveEntry{kind: tar.TypeFifo} }},
		{"link", func(target string) archiveEntry { return archiveEntry{kind: tar.TypeSymlink, link: target} }},
		{"link to /dev/zero", func(string) archiveEntry { return archiveEntry{kind: tar.TypeSymlink, link: "/dev/zero"} }},
		{"hard link", func(target string) archiveEntry { return archiveEntry{kind: tar.TypeLink, link: target} }},
	} {
		for _, place := range []struct {
			name string
			path func(*image) string
		}{
			{"index", func(*image) string { return "index.json" }}, {"manifest", manifestName}, {"configuration", config}, {"layer", layerName},
		} {
			img := newImage(files(map[string]string{"secret": "secret"}))
			all := layoutOf(t, "example.com/app:1", img)
			name := place.path(img)
			all[name] = kind.entry(filepath.Join(outside, name))
			t.Run(kind.name+" as "+place.name, func(t *testing.T) {
				n.loadRepelled(t, "image is corrupt", all)
			})
		}
	}
	swapped := func(change func(*image, map[string]archiveEntry)) map[string]archiveEntry {
		img := newImage(files(map[string]string{"x": "x"}))
		img.manifest.Annotations = map[string]string{"is": "good"}
		all := layoutOf(t, "example.com/app:1", img)
		change(img, all)
		return all
	}
	for name, all := range map[string]map[string]archiveEntry{
		"another manifest": swapped(func(i *image, all map[string]archiveEntry) {
			was := manifestName(i)
			i.manifest.Annotations = map[string]string{"is": "evil"} // of the same size
			all[was] = archiveEntry{data: encode(t, i.manifest)}
		}),
		"another configuration": swapped(func(i *image, all map[string]archiveEntry) {
			was := config(i)
			i.config.Config.Cmd = []string{"evil"}
			all[was] = archiveEntry{data: encode(t, i.config)}
		}),
		"another layer": swapped(func(i *image, all map[string]archiveEntry) {
			all[layerName(i)] = archiveEntry{data: files(map[string]string{"evil": "evil"}).blob}
		}),
		"another size": layoutOf(t, "example.com/app:1", newImage(files(map[string]string{"x": "x"})).with(func(i *image) { i.manifest.Layers[0].Size++ })),
		"digest with a path": swapped(func(i *image, all map[string]archiveEntry) {
			all["index.json"] = archiveEntry{data: []byte(`{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:../../../../etc/passwd","size":10}]}`)}
		}),
	} {
		t.Run(name, func(t *testing.T) { n.loadRepelled(t, "image is corrupt", all) })
	}
	t.Run("names without end", func(t *testing.T) {
		img := newImage(files(map[string]string{"x": "x"}))
		tags := []string{}
		for i := range 300 { // 256 are allowed
			tags = append(tags, fmt.Sprintf("example.com/many:%d", i))
		}
		layer := archiveOf(map[string]string{"x": "x"})
		img.config.RootFS.DiffIDs[0] = digest.FromBytes(layer)
		path := filepath.Join(t.TempDir(), "image.tar")
		writeArchive(t, path, map[string]archiveEntry{
			"manifest.json": {data: encode(t, []map[string]any{{"Config": "c.json", "RepoTags": tags, "Layers": []string{"l.tar"}}})},
			"c.json":        {data: encode(t, img.config)}, "l.tar": {data: layer},
		})
		n.repelled(t, "images.limits.names", func(context.Context) error { return n.load(path) })
	})
	t.Run("FIFO and device as source", func(t *testing.T) {
		fifo := filepath.Join(t.TempDir(), "fifo")
		if err := syscall.Mkfifo(fifo, 0o644); err != nil {
			t.Fatal(err)
		}
		// Other sources that are pipes are what the user wants to wait for: they are read
		// by the command, not by the server.
		n.repelled(t, "neither a file nor a directory", func(context.Context) error { return n.load("oci:" + fifo) })
		for _, source := range []string{"/dev/zero", "oci-archive:/dev/zero", "docker-archive:/dev/zero"} {
			n.repelled(t, "it is a device", func(context.Context) error { return n.load(source) })
		}
	})
}

func (n *contentNode) load(source string) error {
	_, err := n.Subpod("load", source)
	return err
}

// loadRepelled tries files as an archive and as a directory.
func (n *contentNode) loadRepelled(t *testing.T, want string, files map[string]archiveEntry) {
	t.Helper()
	archive, dir := filepath.Join(t.TempDir(), "image.tar"), t.TempDir()
	writeArchive(t, archive, files)
	writeDirectory(t, dir, files)
	for _, source := range []string{archive, "oci-archive:" + archive, "oci:" + dir} {
		n.repelled(t, want, func(context.Context) error { return n.load(source) })
	}
}

// TestForeignLayers: addresses that an image names for its layers are not asked, which
// may be of services that the user alone reaches, nor told credentials.
func TestForeignLayers(t *testing.T) {
	n := startContentNode(t)
	n.others(t)
	var asked atomic.Int64
	spy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		w.WriteHeader(http.StatusNotFound)
	}))
	defer spy.Close()
	for _, kind := range []string{
		"application/vnd.oci.image.layer.v1.tar+gzip", "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
		"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
	} {
		t.Run(strings.ReplaceAll(kind, "/", " "), func(t *testing.T) {
			img := newImage(files(map[string]string{"x": "x"})).with(func(i *image) {
				i.manifest.Layers[0].MediaType = kind
				i.manifest.Layers[0].URLs = []string{spy.URL + "/internal"}
				delete(i.blobs, i.manifest.Layers[0].Digest)
			})
			ref := n.registry.put("foreign", img.finish(t), img.blobs)
			_, err := n.pull(t.Context(), ref)
			t.Logf("the pull: %v", err)
			if err == nil || !strings.Contains(err.Error(), "layers are pulled from the registry alone") {
				t.Errorf("the image is not refused for its address: %v", err)
			}
			if asked.Load() > 0 {
				t.Errorf("the address in the manifest was asked %d times", asked.Load())
			}
		})
	}
}
