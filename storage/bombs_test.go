package storage

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"hash/crc32"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// bombLimit is what one small layer may make the server allocate in all. What the
// bombs ask for is many times as much; an ordinary pull takes a few MiB.
const bombLimit = 256 << 20

// TestXzDictionary: an xz stream says how large a dictionary its reader must have.
func TestXzDictionary(t *testing.T) {
	data := layer{"x": {content: "x"}}.tar(t)
	const four, good = 40, 28 // dictionary sizes as xz writes them: 4 GiB, 64 MiB
	for name, c := range map[string]struct {
		stream []byte
		want   error
	}{
		"64 MiB":        {xzStream(data, good), nil},
		"96 MiB":        {xzStream(data, good+1), ErrUnsupported},
		"4 GiB":         {xzStream(data, four), ErrUnsupported},
		"second block":  {xzStream(data, good, four), ErrUnsupported},
		"second stream": {append(xzStream(data, good), xzStream(nil, four)...), ErrUnsupported},
	} {
		img := withLayer(t, data, c.stream, v1.MediaTypeImageLayer)
		t.Run("pull "+name, func(t *testing.T) {
			reg := startFake(t, img, nil)
			s := bombStore(t, reg.host)
			wantBounded(t, c.want, func() error {
				_, err := s.Images.Pull(context.Background(), PullRequest{Ref: reg.host + "/app:1"})
				return err
			})
		})
		t.Run("load "+name, func(t *testing.T) {
			s := bombStore(t)
			archive := writeFile(t, filepath.Join(t.TempDir(), "image.tar"), string(tarOfDir(t, writeLayout(t, t.TempDir(), map[string]built{"example.com/app:1": img}))))
			wantBounded(t, c.want, func() error {
				_, err := s.Images.Load(context.Background(), archive)
				return err
			})
		})
		t.Run("load from compressed archive "+name, func(t *testing.T) {
			if c.want == nil {
				t.Skip("the archive is an ordinary layer, not an image")
			}
			s := bombStore(t)
			archive := writeFile(t, filepath.Join(t.TempDir(), "image.tar.xz"), string(c.stream))
			wantBounded(t, c.want, func() error {
				_, err := s.Images.Load(context.Background(), archive)
				return err
			})
		})
	}
}

// TestCompressedTwice: containers/storage decompresses what is still compressed once more,
// where nobody counts what comes out.
func TestCompressedTwice(t *testing.T) {
	inner := gzipped(t, layer{"x": {content: strings.Repeat("x", 8<<20)}}.tar(t))
	img := withLayer(t, inner, gzipped(t, inner), v1.MediaTypeImageLayerGzip)
	for _, driver := range []string{DriverVFS, DriverFuse} {
		reg := startFake(t, img, nil)
		o := testOptions(t, t.TempDir(), driver)
		o.Limits.Size = 4 << 20
		insecureConf(t, o, reg.host)
		s := openStore(t, o)
		if _, err := s.Images.Pull(t.Context(), PullRequest{Ref: reg.host + "/app:1"}); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: error %v, want %v", driver, err, ErrCorrupt)
		}
		wantClean(t, s, 0)
	}
}

func bombStore(t *testing.T, hosts ...string) *Store {
	o := testOptions(t, t.TempDir(), DriverVFS)
	insecureConf(t, o, hosts...)
	return openStore(t, o)
}

// wantBounded runs do, which must end with the error want after allocating little.
func wantBounded(t *testing.T, want error, do func() error) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	err := do()
	runtime.ReadMemStats(&after)
	if !errors.Is(err, want) {
		t.Errorf("error %v, want %v", err, want)
	}
	if n := after.TotalAlloc - before.TotalAlloc; n > bombLimit {
		t.Errorf("%d MiB were allocated, want at most %d", n>>20, bombLimit>>20)
	}
}

// xzStream packs data into an xz stream of one block for each dictionary size, the
// first of which holds all of it. Nothing is compressed.
func xzStream(data []byte, dictionaries ...byte) []byte {
	sum := func(b []byte) []byte { return binary.LittleEndian.AppendUint32(nil, crc32.ChecksumIEEE(b)) }
	flags := []byte{0, 1} // integrity check: CRC32
	out := append([]byte("\xfd7zXZ\x00"), flags...)
	out = append(out, sum(flags)...)
	index := binary.AppendUvarint([]byte{0}, uint64(len(dictionaries)))
	for _, dict := range dictionaries {
		header := []byte{2, 0, 0x21, 1, dict, 0, 0, 0} // 12 bytes with its CRC; one filter: LZMA2
		header = append(header, sum(header)...)
		body := []byte{}
		for rest := data; len(rest) > 0; {
			n := min(len(rest), 1<<16)
			control := byte(2) // an uncompressed chunk
			if len(body) == 0 {
				control = 1 // and the dictionary starts anew
			}
			body = append(body, control, byte((n-1)>>8), byte(n-1))
			body = append(body, rest[:n]...)
			rest = rest[n:]
		}
		body = append(body, 0)
		index = binary.AppendUvarint(index, uint64(len(header)+len(body)+4))
		index = binary.AppendUvarint(index, uint64(len(data)))
		out = append(append(out, header...), body...)
		out = append(out, make([]byte, -len(body)&3)...)
		out = append(out, sum(data)...)
		data = nil
	}
	index = append(index, make([]byte, -len(index)&3)...)
	index = append(index, sum(index)...)
	footer := append(binary.LittleEndian.AppendUint32(nil, uint32(len(index)/4-1)), flags...)
	out = append(append(out, index...), sum(footer)...)
	return append(append(out, footer...), "YZ"...)
}

// withLayer returns an image of one layer, data, that is packed as blob.
func withLayer(t testing.TB, data, blob []byte, mime string) built {
	t.Helper()
	out := build(t, imageSpec{})
	var config v1.Image
	var m v1.Manifest
	if err := errors.Join(json.Unmarshal(out.config, &config), json.Unmarshal(out.manifest, &m)); err != nil {
		t.Fatal(err)
	}
	config.RootFS.DiffIDs = []digest.Digest{digest.FromBytes(data)}
	config.History = []v1.History{{CreatedBy: "test"}}
	out.config = mustJSON(t, config)
	layer, conf := digest.FromBytes(blob), digest.FromBytes(out.config)
	out.blobs = map[digest.Digest][]byte{layer: blob, conf: out.config}
	out.layers = []digest.Digest{layer}
	m.Layers = []v1.Descriptor{{MediaType: mime, Digest: layer, Size: int64(len(blob))}}
	m.Config.Digest, m.Config.Size = conf, int64(len(out.config))
	out.manifest = mustJSON(t, m)
	return out
}
