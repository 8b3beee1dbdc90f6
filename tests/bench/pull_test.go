package bench

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/storage"
	"github.com/subpod/subpod/tests/node"
)

// pullArg makes the test binary pull an image by the library that the server uses, with
// nothing of the node around it, and print how long that took.
const pullArg = "pull-image"

const pullRounds = 7

// benchPull measures pulls from a registry on the host's loopback in turns: by the
// daemon, and by the library alone in the host's network. That has a user namespace,
// too: an ordinary user cannot unpack layers without.
func benchPull(t *testing.T, out *strings.Builder) {
	ref := serveImage(t, 2, 64)
	addr, _, _ := strings.Cut(ref, "/")
	registries := fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\n", addr)
	n := node.Start(t, node.Options{Config: "[daemon]\nlog_level = \"warn\"\n", Registries: registries})
	cri := n.CRI()
	var inside, alone []time.Duration
	for range pullRounds {
		unix.Sync() // neither is to pay for what the other has written
		begin := time.Now()
		image := &runtimeapi.ImageSpec{Image: ref}
		if _, err := cri.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: image}); err != nil {
			t.Fatal(err)
		}
		inside = append(inside, time.Since(begin))
		if _, err := cri.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: image}); err != nil {
			t.Fatal(err)
		}
		unix.Sync()
		alone = append(alone, pullAlone(t, n, ref))
	}
	fastest, reference := slices.Min(inside), slices.Min(alone) // other work on the machine only makes slower
	fmt.Fprintf(out, "\n  pull of 128 MiB: %v; by the library alone in the host's network: %v; ratio of speeds %.2f\n",
		fastest.Round(time.Millisecond), reference.Round(time.Millisecond), float64(reference)/float64(fastest))
}

func pullAlone(t *testing.T, n *node.Node, ref string) (took time.Duration) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// Where the daemon has its own: on the same file systems.
	root, run := filepath.Join(n.Dir, "alone"), filepath.Join(n.XDG, "alone")
	cmd := exec.Command("unshare", "--map-root-user", "--map-auto", "--mount", "--", exe, pullArg, root, run, ref)
	cmd.Env = n.Environ()
	text, err := cmd.CombinedOutput()
	if _, scanErr := fmt.Sscan(string(text), &took); err != nil || scanErr != nil {
		t.Fatalf("pull by the library alone: %v: %s", err, text)
	}
	for _, dir := range []string{root, run} {
		if err := node.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	return took
}

// pullMain is the pull by the library alone. Arguments: root, run root, reference.
func pullMain(args []string) error {
	ctx := context.Background()
	store, err := storage.Open(ctx, storage.Options{
		Root: args[0], RunRoot: args[1], Home: os.Getenv("HOME"), Log: slog.New(slog.DiscardHandler),
		Driver: "fuse-overlayfs", MountProgram: "/usr/bin/fuse-overlayfs", MaxParallelDownloads: 3, PullTimeout: time.Minute,
	})
	if err != nil {
		return err
	}
	begin := time.Now()
	if _, err := store.Images.Pull(ctx, storage.PullRequest{Ref: args[2]}); err != nil {
		return err
	}
	fmt.Println(time.Since(begin).Nanoseconds())
	return store.Close()
}

// serveImage serves, on loopback, an image that does not compress, and returns its name.
func serveImage(t *testing.T, layers, mebibytes int) string {
	t.Helper()
	var made [][]byte
	for i := range layers {
		made = append(made, randomLayer(t, fmt.Sprintf("layer%d", i), mebibytes))
	}
	return serveLayers(t, made)
}

// serveLayers serves an image of these layers on loopback, and returns its name.
func serveLayers(t *testing.T, layers [][]byte) string {
	t.Helper()
	return serveImages(t, [][][]byte{layers})[0]
}

// serveImages serves images of these layers on loopback, and returns their names.
func serveImages(t *testing.T, images [][][]byte) (refs []string) {
	t.Helper()
	blobs := map[string][]byte{}
	for i, layers := range images {
		addImage(t, blobs, fmt.Sprint("v", i), layers)
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		blob, ok := blobs[r.URL.Path]
		switch {
		case path.Clean(r.URL.Path) == "/v2":
			return
		case !ok:
			http.NotFound(w, r)
			return
		case strings.Contains(r.URL.Path, "/manifests/"):
			w.Header().Set("Content-Type", v1.MediaTypeImageManifest)
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(blob))
	}))
	t.Cleanup(s.Close)
	for i := range images {
		refs = append(refs, fmt.Sprintf("%s/big:v%d", s.Listener.Addr(), i))
	}
	return refs
}

// addImage adds what a registry has of an image, by path.
func addImage(t *testing.T, blobs map[string][]byte, tag string, layers [][]byte) {
	t.Helper()
	add := func(mediaType string, blob []byte) v1.Descriptor {
		d := digest.FromBytes(blob)
		blobs["/v2/big/blobs/"+d.String()] = blob
		return v1.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(blob))}
	}
	manifest := v1.Manifest{Versioned: imagespec.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest}
	config := v1.Image{Platform: v1.Platform{Architecture: "amd64", OS: "linux"}, RootFS: v1.RootFS{Type: "layers"}}
	for _, layer := range layers {
		mediaType, diffID := v1.MediaTypeImageLayer, digest.FromBytes(layer)
		if plain, err := gzip.NewReader(bytes.NewReader(layer)); err == nil {
			mediaType = v1.MediaTypeImageLayerGzip
			if diffID, err = digest.FromReader(plain); err != nil {
				t.Fatal(err)
			}
		}
		manifest.Layers = append(manifest.Layers, add(mediaType, layer))
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, diffID)
	}
	manifest.Config = add(v1.MediaTypeImageConfig, encode(t, config))
	encoded := encode(t, manifest)
	blobs["/v2/big/manifests/"+tag] = encoded
	blobs["/v2/big/manifests/"+digest.FromBytes(encoded).String()] = encoded
}

// randomLayer is a tar archive of files of 1 MiB each.
func randomLayer(t *testing.T, dir string, files int) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	content := make([]byte, 1<<20)
	for i := range files {
		_, _ = rand.Read(content)
		if err := w.WriteHeader(&tar.Header{Name: fmt.Sprintf("%s/%d", dir, i), Mode: 0o644, Size: int64(len(content))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func encode(t *testing.T, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
