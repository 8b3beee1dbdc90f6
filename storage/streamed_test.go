package storage

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/types"
)

// TestUnpackedWhileItComes: the files of a layer are there before its last byte is, without
// the blob in a file of the content process.
func TestUnpackedWhileItComes(t *testing.T) {
	random := make([]byte, 8<<20)
	rand.NewChaCha8([32]byte{}).Read(random)
	first := layer{"a": {content: "first"}, "b": {content: string(random)}}
	img := build(t, imageSpec{layers: []layer{first, {"c": {content: "second"}}}})
	rest := make(chan struct{})
	r := startFake(t, img, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, img.layers[0].String()) {
			return false
		}
		blob := img.blobs[img.layers[0]]
		w.Header().Set("Content-Length", strconv.Itoa(len(blob)))
		w.Write(blob[:6<<20])
		w.(http.Flusher).Flush()
		select {
		case <-rest:
			w.Write(blob[6<<20:])
		case <-r.Context().Done():
		}
		return true
	})
	o := testOptions(t, t.TempDir(), DriverFuse)
	insecureConf(t, o, r.host)
	s := openStore(t, o)
	ended := background(s, r.host+"/app:1")
	deadline := time.After(patience)
	for !hasFile(s.layers.dirs.overlay(), "a") {
		select {
		case err := <-ended:
			t.Fatalf("the pull has ended: %v", err)
		case <-deadline:
			t.Fatal("nothing is unpacked before the layer is whole")
		case <-time.After(10 * time.Millisecond):
		}
	}
	if blobs, _ := diskUsage(context.Background(), s.layers.dirs.tmp()); blobs.Bytes > 1<<20 {
		t.Errorf("%d bytes of blobs are in files beside the spool", blobs.Bytes)
	}
	close(rest)
	if err := receive(t, "the pull", ended); err != nil {
		t.Fatal(err)
	}
	wantClean(t, s, 2)
	files := s.layers.diffDir(chainID("", digest.FromBytes(first.tar(t))))
	if got, err := os.ReadFile(filepath.Join(files, "b")); err != nil || !bytes.Equal(got, random) {
		t.Errorf("the file of %d bytes has become one of %d: %v", len(random), len(got), err)
	}
	if problems, err := s.Images.Check(context.Background(), false); err != nil || len(problems) > 0 {
		t.Errorf("problems %v, %v", problems, err)
	}
	for _, l := range img.layers {
		if n := r.count("GET /v2/app/blobs/" + l.String()); n != 1 {
			t.Errorf("layer %s was downloaded %d times", l, n)
		}
	}
}

func hasFile(root, name string) (found bool) {
	_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		found = found || err == nil && d.Name() == name
		return nil
	})
	return found
}

// TestStreamedLayerIsVerified: a layer that unpacks to something else than the configuration
// states, or that is not its digest's, is never in the store.
func TestStreamedLayerIsVerified(t *testing.T) {
	good := build(t, imageSpec{layers: []layer{{"a": {content: "first"}}, {"b": {content: "second"}}}})
	t.Run("configuration", func(t *testing.T) {
		img := otherDiffID(t, good, 1)
		r := startFake(t, img, nil)
		o := testOptions(t, t.TempDir(), DriverFuse)
		insecureConf(t, o, r.host)
		s := openStore(t, o)
		if _, err := s.Images.Pull(context.Background(), PullRequest{Ref: r.host + "/app:1"}); err == nil {
			t.Error("an image whose configuration states another layer was pulled")
		}
		wantClean(t, s, 0)
		if n := r.count("GET /v2/app/blobs/" + img.layers[1].String()); n != 1 {
			t.Errorf("the layer was downloaded %d times", n)
		}
	})
	t.Run("blob", func(t *testing.T) {
		img := good
		img.blobs = map[digest.Digest][]byte{}
		for d, blob := range good.blobs {
			img.blobs[d] = blob
		}
		img.blobs[img.layers[1]] = gzipped(t, layer{"b": {content: "sec0nd"}}.tar(t))
		r := startFake(t, img, nil)
		o := testOptions(t, t.TempDir(), DriverFuse)
		insecureConf(t, o, r.host)
		s := openStore(t, o)
		_, err := s.Images.Pull(context.Background(), PullRequest{Ref: r.host + "/app:1"})
		if err == nil || !strings.Contains(err.Error(), img.layers[1].String()) {
			t.Errorf("an image with a layer of another digest: %v", err)
		}
		wantClean(t, s, 0)
	})
}

// otherDiffID returns an image whose configuration states something else for a layer.
func otherDiffID(t *testing.T, img built, i int) built {
	t.Helper()
	var config v1.Image
	var m v1.Manifest
	if err := json.Unmarshal(img.config, &config); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(img.manifest, &m); err != nil {
		t.Fatal(err)
	}
	config.RootFS.DiffIDs[i] = digest.FromString("something else")
	out := built{blobs: map[digest.Digest][]byte{}, layers: img.layers, config: mustJSON(t, config)}
	for _, l := range img.layers {
		out.blobs[l] = img.blobs[l]
	}
	m.Config.Digest, m.Config.Size = digest.FromBytes(out.config), int64(len(out.config))
	out.blobs[m.Config.Digest] = out.config
	out.manifest = mustJSON(t, m)
	return out
}

// TestEventsAfterEnd: the program that decompresses a layer may read on when the layer has
// been given up, and with it the progress.
func TestEventsAfterEnd(t *testing.T) {
	events := make(chan types.ProgressProperties, 1)
	b := newBlobReader(openBlob{io.NopCloser(endless{}), func() {}, nil}, &holdingStore{}, types.BlobInfo{Size: 1 << 30}, events)
	b.end()
	close(events)
	b.told = time.Time{} // long ago
	for {
		if _, err := b.Read(make([]byte, aheadSize)); err != nil {
			return
		}
	}
}

// TestBlobGivenUp: nothing goes on to read a blob of which somebody wants no more.
func TestBlobGivenUp(t *testing.T) {
	for name, c := range map[string]struct {
		body func(context.Context) io.Reader
		read int
	}{
		"much":    {func(context.Context) io.Reader { return endless{} }, 5},
		"waiting": {func(ctx context.Context) io.Reader { return silent{ctx} }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			b := newBlobReader(openBlob{io.NopCloser(c.body(ctx)), cancel, nil}, &holdingStore{}, types.BlobInfo{Size: 1 << 30}, make(chan types.ProgressProperties, 16))
			if _, err := io.ReadFull(b, make([]byte, c.read)); err != nil {
				t.Fatal(err)
			}
			b.end()
			for _, ended := range []<-chan struct{}{b.ahead.ended, b.ahead.summed} {
				select {
				case <-ended:
				case <-time.After(patience):
					t.Fatal("it is still read")
				}
			}
		})
	}
}

// endless is a body without an end.
type endless struct{}

// Read implements io.Reader.
func (endless) Read(p []byte) (int, error) { return len(p), nil }

// silent is a body of which nothing comes.
type silent struct{ ctx context.Context }

// Read implements io.Reader.
func (s silent) Read([]byte) (int, error) {
	<-s.ctx.Done()
	return 0, s.ctx.Err()
}

// TestFuseReadsPipeSize: libfuse copies what it reads through buffers of its own, for each
// container, where it cannot learn how large a pipe may be.
func TestFuseReadsPipeSize(t *testing.T) {
	cmd := exec.Command("/bin/cat", "/proc/sys/fs/pipe-max-size")
	if err := startUnder(overlayMount{base: t.TempDir()}.fuseRules(cmd.Path, ""), cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("fuse-overlayfs cannot read it: %v", err)
	}
}
