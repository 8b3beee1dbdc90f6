package attack

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// blobs are the parts of images, by digest.
type blobs map[digest.Digest][]byte

func (b blobs) add(data []byte) digest.Digest {
	d := digest.FromBytes(data)
	b[d] = data
	return d
}

// image is an image as an attacker makes it.
type image struct {
	blobs    blobs
	config   v1.Image
	manifest v1.Manifest
}

// newImage returns an image of the given layers.
func newImage(layers ...layer) *image {
	i := &image{blobs: blobs{}}
	i.config.Platform = v1.Platform{Architecture: runtime.GOARCH, OS: "linux"}
	i.config.RootFS.Type = "layers"
	i.config.Config.Cmd = []string{"sh"}
	i.manifest.Versioned, i.manifest.MediaType = specs.Versioned{SchemaVersion: 2}, v1.MediaTypeImageManifest
	for _, l := range layers {
		i.config.RootFS.DiffIDs = append(i.config.RootFS.DiffIDs, l.diffID)
		i.manifest.Layers = append(i.manifest.Layers, v1.Descriptor{MediaType: l.mime, Digest: i.blobs.add(l.blob), Size: int64(len(l.blob))})
	}
	return i
}

// with changes the image.
func (i *image) with(change func(*image)) *image {
	change(i)
	return i
}

// finish returns the manifest, and adds it and the configuration to the blobs.
func (i *image) finish(t testing.TB) []byte {
	t.Helper()
	config := encode(t, i.config)
	i.manifest.Config = v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: i.blobs.add(config), Size: int64(len(config))}
	raw := encode(t, i.manifest)
	i.blobs.add(raw)
	return raw
}

func encode(t testing.TB, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// layer is a layer as a registry has it.
type layer struct {
	mime   string
	blob   []byte
	diffID digest.Digest
}

func plainLayer(data []byte) layer {
	return layer{v1.MediaTypeImageLayer, data, digest.FromBytes(data)}
}

// gzipLayer packs what write writes, without keeping it.
func gzipLayer(write func(io.Writer)) layer {
	var packed bytes.Buffer
	z, _ := gzip.NewWriterLevel(&packed, gzip.BestSpeed)
	sum := digest.Canonical.Digester()
	write(io.MultiWriter(z, sum.Hash()))
	_ = z.Close()
	return layer{v1.MediaTypeImageLayerGzip, packed.Bytes(), sum.Digest()}
}

// files is a layer of files by name and content.
func files(names map[string]string) layer {
	return gzipLayer(func(w io.Writer) { _, _ = w.Write(archiveOf(names)) })
}

// tarOf is an archive of files by name and content.
func archiveOf(names map[string]string) []byte {
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for name, content := range names {
		_ = tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content)), Typeflag: tar.TypeReg})
		_, _ = io.WriteString(tw, content)
	}
	_ = tw.Close()
	return b.Bytes()
}

// links is a layer of symbolic links, and a file that is written after them.
func links(links map[string]string, file string) layer {
	return gzipLayer(func(w io.Writer) {
		tw := tar.NewWriter(w)
		for name, target := range links {
			_ = tw.WriteHeader(&tar.Header{Name: name, Linkname: target, Mode: 0o777, Typeflag: tar.TypeSymlink})
		}
		_ = tw.WriteHeader(&tar.Header{Name: file, Mode: 0o644, Size: 1, Typeflag: tar.TypeReg})
		_, _ = io.WriteString(tw, "x")
		_ = tw.Close()
	})
}

// hardLink is a layer with a hard link.
func hardLink(target string) layer {
	return gzipLayer(func(w io.Writer) {
		tw := tar.NewWriter(w)
		_ = tw.WriteHeader(&tar.Header{Name: "hard", Linkname: target, Mode: 0o644, Typeflag: tar.TypeLink})
		_ = tw.Close()
	})
}

// repeat writes n bytes like fill, a mebibyte at a time.
func repeat(w io.Writer, fill byte, n int64) {
	chunk := bytes.Repeat([]byte{fill}, 1<<20)
	for ; n > 0; n -= int64(len(chunk)) {
		_, _ = w.Write(chunk[:min(n, int64(len(chunk)))])
	}
}

// zeroBomb is a file of n zeros.
func zeroBomb(n int64) layer {
	return gzipLayer(func(w io.Writer) {
		tw := tar.NewWriter(w)
		_ = tw.WriteHeader(&tar.Header{Name: "bomb", Mode: 0o644, Size: n, Typeflag: tar.TypeReg})
		repeat(tw, 0, n)
		_ = tw.Close()
	})
}

// sparseBomb is a file whose sparse map (GNU, PAX 1.0) takes n bytes: its reader is to
// keep all of it (CVE-2025-58183).
func sparseBomb(n int64) layer {
	return gzipLayer(func(w io.Writer) {
		record := func(key, value string) string {
			s := " " + key + "=" + value + "\n"
			return strconv.Itoa(len(s)+2) + s
		}
		pax := record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0") + record("GNU.sparse.name", "f") + record("GNU.sparse.realsize", "1")
		_, _ = w.Write(header("pax", tar.TypeXHeader, int64(len(pax))))
		_, _ = io.WriteString(w, pax+strings.Repeat("\x00", (512-len(pax)%512)%512))
		_, _ = w.Write(header("f", tar.TypeReg, n))
		repeat(w, '0', n)
		repeat(w, 0, 1024)
	})
}

// header is one of a tar archive, as nothing but an attacker writes it.
func header(name string, kind byte, size int64) []byte {
	h := make([]byte, 512)
	copy(h, name)
	copy(h[100:], "0000644\x000000000\x000000000\x00")
	copy(h[124:], fmt.Sprintf("%011o\x0000000000000\x00", size))
	h[156] = kind
	copy(h[257:], "ustar\x0000")
	copy(h[148:], "        ")
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	return h
}

// xzBomb is a layer whose reader needs a dictionary of 4 GiB.
func xzBomb() layer {
	sum := func(b []byte) []byte { return binary.LittleEndian.AppendUint32(nil, crc32.ChecksumIEEE(b)) }
	data := append(header("x", tar.TypeReg, 0), make([]byte, 1024)...)
	flags := []byte{0, 1}
	out := append([]byte("\xfd7zXZ\x00"), flags...)
	out = append(out, sum(flags)...)
	head := []byte{2, 0, 0x21, 1, 40, 0, 0, 0}
	head = append(head, sum(head)...)
	body := append([]byte{1, byte((len(data) - 1) >> 8), byte(len(data) - 1)}, data...)
	body = append(body, 0)
	out = append(append(append(out, head...), body...), make([]byte, -len(body)&3)...)
	out = append(out, sum(data)...)
	index := binary.AppendUvarint([]byte{0}, 1)
	index = binary.AppendUvarint(index, uint64(len(head)+len(body)+4))
	index = binary.AppendUvarint(index, uint64(len(data)))
	index = append(index, make([]byte, -len(index)&3)...)
	index = append(index, sum(index)...)
	footer := append(binary.LittleEndian.AppendUint32(nil, uint32(len(index)/4-1)), flags...)
	out = append(append(append(out, index...), sum(footer)...), footer...)
	return layer{v1.MediaTypeImageLayer, append(out, "YZ"...), digest.FromBytes(data)}
}

// hostileRegistry serves images by repository, each under any tag. Some repositories do
// as their name says, for the image of the rest of the name:
//
//	endless/…    layers do not end
//	slow/…       layers come a byte at a time
//	manifest/…   manifests do not end
type hostileRegistry struct {
	host string

	mu        sync.Mutex
	manifests map[string][]byte
	blobs     blobs
	slow      int // answers that have begun to come slowly
}

func startHostileRegistry(t testing.TB) *hostileRegistry {
	r := &hostileRegistry{manifests: map[string][]byte{}, blobs: blobs{}}
	server := httptest.NewServer(r)
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	r.host = strings.TrimPrefix(server.URL, "http://")
	return r
}

// conf is the registries.conf by which it is found.
func (r *hostileRegistry) conf() string {
	return fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\n", r.host)
}

// put adds a manifest under a name and returns its reference.
func (r *hostileRegistry) put(name string, manifest []byte, parts blobs) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.manifests[name] = manifest
	for d, b := range parts {
		r.blobs[d] = b
	}
	return r.host + "/" + name + ":1"
}

// ServeHTTP implements http.Handler.
func (r *hostileRegistry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	path := strings.TrimPrefix(req.URL.Path, "/v2/")
	if path == "" {
		return
	}
	repository, ref, isManifest := strings.Cut(path, "/manifests/")
	if !isManifest {
		repository, ref, _ = strings.Cut(path, "/blobs/")
	}
	kind, name, _ := strings.Cut(repository, "/")
	switch kind {
	case "endless", "slow", "manifest":
	default:
		kind, name = "", repository
	}
	r.mu.Lock()
	content, ok := r.blobs[digest.Digest(ref)]
	if isManifest && !strings.HasPrefix(ref, "sha256:") {
		content, ok = r.manifests[name]
	}
	r.mu.Unlock()
	if !ok {
		http.NotFound(w, req)
		return
	}
	if isManifest {
		var m struct{ MediaType string }
		_ = json.Unmarshal(content, &m)
		w.Header().Set("Content-Type", m.MediaType)
		if kind == "manifest" {
			repeat(w, ' ', 1<<33)
		}
		_, _ = w.Write(content)
		return
	}
	if bytes.HasPrefix(content, []byte("{")) {
		kind = "" // a configuration
	}
	switch kind {
	case "endless":
		_, _ = w.Write(content)
		for i := 0; i < 1<<13 && req.Context().Err() == nil; i++ {
			repeat(w, 0, 1<<20)
		}
	case "slow":
		r.mu.Lock()
		r.slow++
		r.mu.Unlock()
		w.Header().Set("Content-Length", strconv.Itoa(len(content)))
		for i := range content {
			_, _ = w.Write(content[i : i+1])
			_ = http.NewResponseController(w).Flush()
			select {
			case <-req.Context().Done():
				return
			case <-time.After(time.Second):
			}
		}
	default:
		http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(content))
	}
}

func (r *hostileRegistry) slowAnswers() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.slow
}
