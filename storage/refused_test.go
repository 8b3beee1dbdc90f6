package storage

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestRefusedByName: an image that cannot be unpacked is refused for what is wrong with it,
// and the error names the file, the owner or the part of the image.
func TestRefusedByName(t *testing.T) {
	r := startMemoryRegistry(t)
	o := testOptions(t, t.TempDir(), DriverNative)
	insecureConf(t, o, r.host)
	s := openStore(t, o)
	owner := func(uid, gid int) []byte {
		return tarEntries(t, &tar.Header{Name: "q", Typeflag: tar.TypeReg, Mode: 0o644, Uid: uid, Gid: gid, Format: tar.FormatGNU})
	}
	config := func(text string) built {
		blob := []byte(text)
		img := remake(t, build(t, imageSpec{tars: [][]byte{tarEntries(t, "f=f")}}), func(m *v1.Manifest) {
			m.Config.Digest, m.Config.Size = digest.FromBytes(blob), int64(len(blob))
		})
		img.blobs[digest.FromBytes(blob)] = blob
		return img
	}
	layers := func(tars ...[]byte) built { return build(t, imageSpec{tars: tars}) }
	for tag, c := range map[string]struct {
		img  built
		err  error
		word string
	}{
		"link":          {layers(tarEntries(t, "h=>nowhere/x")), ErrCorrupt, `a hard link to "nowhere/x", which neither`},
		"link-hidden":   {layers(tarEntries(t, "a=a"), tarEntries(t, ".wh.a"), tarEntries(t, "h=>a")), ErrCorrupt, `a hard link to "a", which neither`},
		"link-itself":   {layers(tarEntries(t, "h=>h")), ErrCorrupt, `a hard link to "h", which neither`},
		"link-dir":      {layers(tarEntries(t, "d/", "h=>d")), ErrCorrupt, `a hard link to the directory "d"`},
		"link-lowerdir": {layers(tarEntries(t, "d/"), tarEntries(t, "h=>d")), ErrCorrupt, `a hard link to "d", which is a directory`},
		// What chown(2) takes for "no change", for root, and for nothing.
		"uid-none":    {layers(owner(1<<32-1, 0)), ErrIDRange, "/q belongs to user"},
		"uid-wraps":   {layers(owner(1<<32, 0)), ErrIDRange, "/q belongs to user"},
		"uid-minus":   {layers(owner(-1, 0)), ErrIDRange, "/q belongs to user"},
		"gid-wraps":   {layers(owner(0, 1<<32)), ErrIDRange, "/q belongs to user"},
		"gid-minus":   {layers(owner(0, -2)), ErrIDRange, "/q belongs to user"},
		"attributes":  {layers(attribute(t, 70000)), ErrUnsupported, "extended attributes"},
		"created":     {config(`{"architecture":"` + runtime.GOARCH + `","os":"linux","created":5,"rootfs":{"type":"layers","diff_ids":[]}}`), ErrCorrupt, "its configuration"},
		"chunked-lie": {lyingChunked(t), ErrCorrupt, "zstd:chunked"},
	} {
		r.put(c.img, v1.MediaTypeImageManifest, tag)
		_, err := s.Images.Pull(context.Background(), PullRequest{Ref: r.host + "/x:" + tag})
		if !errors.Is(err, c.err) || !strings.Contains(fmt.Sprint(err), c.word) {
			t.Errorf("%s: %v; want %v with %q", tag, err, c.err, c.word)
		}
		wantClean(t, s, 0)
	}
}

// attribute returns a layer with a file that has an extended attribute of this size.
func attribute(t *testing.T, size int) []byte {
	return tarEntries(t, &tar.Header{Name: "q", Typeflag: tar.TypeReg, Mode: 0o644, Format: tar.FormatPAX,
		PAXRecords: map[string]string{paxXattr + "user.big": strings.Repeat("v", size)}})
}

// lyingChunked returns an image with a layer for which the manifest states a table of contents that
// it does not have.
func lyingChunked(t *testing.T) built {
	return remake(t, withZstd(t, tarEntries(t, "f="+random(10000))), func(m *v1.Manifest) {
		m.Layers[0].MediaType = v1.MediaTypeImageLayerZstd
		m.Layers[0].Annotations = map[string]string{
			"io.github.containers.zstd-chunked.manifest-checksum": digest.FromString("x").String(),
			"io.github.containers.zstd-chunked.manifest-position": "10:20:30:1",
		}
	})
}
