package storage

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// saveFile is an archive of "docker save" in the making.
type saveFile struct {
	t   testing.TB
	buf bytes.Buffer
	w   *tar.Writer
}

func newSaved(t testing.TB) *saveFile {
	s := &saveFile{t: t}
	s.w = tar.NewWriter(&s.buf)
	return s
}

func (s *saveFile) file(name string, data []byte) {
	s.entry(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data))}, data)
}

func (s *saveFile) link(kind byte, name, target string) {
	s.entry(&tar.Header{Name: name, Typeflag: kind, Linkname: target}, nil)
}

func (s *saveFile) json(name string, v any) { s.file(name, mustJSON(s.t, v)) }

func (s *saveFile) entry(h *tar.Header, data []byte) {
	s.t.Helper()
	if err := s.w.WriteHeader(h); err != nil {
		s.t.Fatal(err)
	}
	if _, err := s.w.Write(data); err != nil {
		s.t.Fatal(err)
	}
}

func (s *saveFile) write(path string) string {
	s.t.Helper()
	if err := s.w.Close(); err != nil {
		s.t.Fatal(err)
	}
	return writeFile(s.t, path, s.buf.String())
}

type item = map[string]any

// archives are what "docker save" wrote over the years: what is loaded of it is the
// content of the file "f" of each image, by its names.
func archives(t testing.TB, dir string) map[string]string {
	layer := func(text string) []byte { return tarEntries(t, "f="+text) }
	config := func(layers ...[]byte) []byte { return build(t, imageSpec{tars: layers}).config }
	a, b := layer("a"), layer("b")
	out := map[string]string{}
	add := func(name string, s *saveFile) { out[s.write(filepath.Join(dir, name+".tar"))] = name }

	s := newSaved(t) // Docker 1.10 to 24; the same layer again is a link to the first
	s.file("a/layer.tar", a)
	s.link(tar.TypeSymlink, "b/layer.tar", "../a/layer.tar")
	s.file("c/layer.tar", b)
	s.link(tar.TypeSymlink, "d/layer.tar", "../b/layer.tar")
	s.file("one.json", config(a, b))
	s.file("two.json", config(a))
	s.json("manifest.json", []item{{"Config": "one.json", "RepoTags": []string{"x/one:1"}, "Layers": []string{"b/layer.tar", "c/layer.tar"}},
		{"Config": "two.json", "RepoTags": nil, "Layers": []string{"d/layer.tar"}}})
	add("links", s)

	s = newSaved(t)
	s.file("./a/layer.tar", a)
	s.link(tar.TypeLink, "./b/layer.tar", "./a/layer.tar")
	s.file("./one.json", config(a))
	s.json("./manifest.json", []item{{"Config": "one.json", "RepoTags": []string{"x/one:1", "y/one:2"}, "Layers": []string{"b/layer.tar"}}})
	add("hard", s)

	s = newSaved(t) // Docker 25 and later: an OCI layout, too, and layers may be compressed
	blob := func(data []byte) string {
		name := "blobs/sha256/" + digest.FromBytes(data).Encoded()
		s.file(name, data)
		return name
	}
	zipped := gzipped(t, b)
	c := blob(config(a, b))
	s.json("manifest.json", []item{{"Config": c, "RepoTags": []string{"x/one:1"}, "Layers": []string{blob(a), blob(zipped)}}})
	s.json("index.json", v1.Index{})
	s.json("oci-layout", item{"imageLayoutVersion": "1.0.0"})
	add("blobs", s)

	s = newSaved(t) // before Docker 1.10
	s.json("0a/json", item{"id": "0a", "created": "2015-01-02T03:04:05Z", "container_config": item{"Cmd": []string{"/bin/sh", "-c", "#(nop) ADD"}}, "os": "linux", "architecture": "amd64"})
	s.file("0a/VERSION", []byte("1.0"))
	s.file("0a/layer.tar", a)
	s.json("0b/json", item{"id": "0b", "parent": "0a", "created": "2015-01-03T03:04:05Z", "os": "linux", "architecture": "amd64", "config": item{"Cmd": []string{"x"}, "User": "7"}})
	s.file("0b/VERSION", []byte("1.0"))
	s.file("0b/layer.tar", b)
	s.json("repositories", item{"x/one": item{"1": "0b"}})
	add("legacy", s)
	return out
}

var archivesWant = map[string][]string{
	"links":  {"docker.io/x/one:1=b", "=a"},
	"hard":   {"docker.io/x/one:1,docker.io/y/one:2=a"},
	"blobs":  {"docker.io/x/one:1=b"},
	"legacy": {"docker.io/x/one:1=b"},
}

// TestArchives: archives of every age are loaded, from a file, compressed, and from a
// stream.
func TestArchives(t *testing.T) {
	ctx := context.Background()
	for path, name := range archives(t, t.TempDir()) {
		zipped := writeFile(t, path+".gz", string(gzipped(t, []byte(mustRead(t, path)))))
		for how, load := range map[string]func(*Images) ([]Image, error){
			"bare":   func(im *Images) ([]Image, error) { return im.Load(ctx, path) },
			"named":  func(im *Images) ([]Image, error) { return im.Load(ctx, "docker-archive:"+path) },
			"zipped": func(im *Images) ([]Image, error) { return im.Load(ctx, zipped) },
			"stream": func(im *Images) ([]Image, error) {
				f, err := os.Open(zipped)
				if err != nil {
					return nil, err
				}
				defer f.Close()
				return im.LoadFrom(ctx, f, "", "")
			},
		} {
			t.Run(name+"-"+how, func(t *testing.T) {
				s := openStore(t, testOptions(t, t.TempDir(), DriverNative))
				images, err := load(s.Images)
				if err != nil {
					t.Fatal(err)
				}
				var got []string
				for i, img := range images {
					root, err := s.Rootfs.Create(ctx, RootfsSpec{ID: containerID(byte(i)), ImageID: img.ID})
					if err != nil {
						t.Fatal(err)
					}
					slices.Sort(img.RepoTags)
					got = append(got, strings.Join(img.RepoTags, ",")+"="+mustRead(t, filepath.Join(root.Path, "f")))
					if name == "legacy" && (img.User != "7" || img.Created.Day() != 3 || len(img.History) != 2) {
						t.Errorf("the configuration was not kept: %+v", img)
					}
				}
				if !slices.Equal(got, archivesWant[name]) {
					t.Errorf("loaded %v, want %v", got, archivesWant[name])
				}
			})
		}
	}
}

// TestArchiveWithColon: an archive may have the name of an image.
func TestArchiveWithColon(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "saved:today")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, testOptions(t, t.TempDir(), DriverNative))
	for path, name := range archives(t, dir) {
		named := filepath.Join(dir, name+":latest.tar")
		if err := os.Rename(path, named); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Images.Load(context.Background(), named); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestArchivesRefused: what is wrong with an archive is said.
func TestArchivesRefused(t *testing.T) {
	dir := t.TempDir()
	img := build(t, imageSpec{tars: [][]byte{tarEntries(t, "f=f")}})
	list := []item{{"Config": "c.json", "RepoTags": []string{"x:1"}, "Layers": []string{"l/layer.tar"}}}
	s := openStore(t, testOptions(t, t.TempDir(), DriverNative))
	for name, c := range map[string]struct {
		fill func(*saveFile)
		want error
		word string
	}{
		"missing-layer":  {func(s *saveFile) { s.file("c.json", img.config); s.json("manifest.json", list) }, ErrCorrupt, "l/layer.tar"},
		"missing-config": {func(s *saveFile) { s.json("manifest.json", list) }, ErrCorrupt, "c.json"},
		"loop": {func(s *saveFile) {
			s.link(tar.TypeSymlink, "l/layer.tar", "../m")
			s.link(tar.TypeSymlink, "m", "l/layer.tar")
			s.file("c.json", img.config)
			s.json("manifest.json", list)
		}, ErrCorrupt, "links"},
		"outside": {func(s *saveFile) {
			s.link(tar.TypeSymlink, "l/layer.tar", "../../../../etc/passwd")
			s.file("c.json", img.config)
			s.json("manifest.json", list)
		}, ErrCorrupt, "etc/passwd"},
		"other-layer": {func(s *saveFile) {
			s.file("l/layer.tar", tarEntries(t, "f=other"))
			s.file("c.json", img.config)
			s.json("manifest.json", list)
		}, ErrCorrupt, "igest"},
		"no-images": {func(s *saveFile) {
			s.file("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
			s.file("index.json", []byte("{}"))
		}, ErrCorrupt, "it has no images"},
		"empty-list": {func(s *saveFile) { s.json("manifest.json", []item{}) }, ErrCorrupt, "it has no images"},
		"no-list":    {func(s *saveFile) { s.file("manifest.json", []byte("{")) }, ErrCorrupt, "manifest.json"},
		"bad-name": {func(s *saveFile) {
			s.file("c.json", img.config)
			s.json("manifest.json", []item{{"Config": "c.json", "RepoTags": []string{"A B"}}})
		}, ErrCorrupt, "A B"},
		"legacy-loop": {func(s *saveFile) {
			s.json("a/json", item{"id": "a", "parent": "b"})
			s.json("b/json", item{"id": "b", "parent": "a"})
			s.file("a/layer.tar", nil)
		}, ErrCorrupt, "parents"},
		"legacy-holes": {func(s *saveFile) { s.json("a/json", item{"id": "a", "parent": "b"}); s.file("a/layer.tar", nil) }, ErrCorrupt, "parent"},
	} {
		a := newSaved(t)
		c.fill(a)
		_, err := s.Images.Load(context.Background(), a.write(filepath.Join(dir, name)))
		if !errors.Is(err, c.want) || !strings.Contains(fmt.Sprint(err), c.word) {
			t.Errorf("%s: %v; want %v with %q", name, err, c.want, c.word)
		}
		wantClean(t, s, 0)
	}
	for name, stream := range map[string]string{"nothing": "", "text": "hello", "cut": string(gzipped(t, []byte(random(5000))))[:900]} {
		if _, err := s.Images.LoadFrom(context.Background(), strings.NewReader(stream), "", ""); !errors.Is(err, ErrCorrupt) {
			t.Errorf("a stream of %s: %v", name, err)
		}
		wantClean(t, s, 0)
	}
}

// FuzzArchive: any archive, manifest.json and configuration is refused, or described.
func FuzzArchive(f *testing.F) {
	for path := range archives(f, f.TempDir()) {
		f.Add([]byte(mustRead(f, path)))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		tmp := t.TempDir()
		a, err := openSavedArchive(writeFile(t, filepath.Join(tmp, "a"), string(data)), tmp)
		if err != nil {
			return
		}
		defer a.Close()
		list, err := a.List()
		if err != nil {
			return
		}
		for _, refs := range list {
			source, err := refs[0].NewImageSource(context.Background(), nil)
			if err != nil {
				continue
			}
			raw, mime, err := source.GetManifest(context.Background(), nil)
			if err != nil || mime != v1.MediaTypeImageManifest || len(raw) == 0 {
				t.Errorf("an image without a manifest: %q, %v", raw, err)
			}
		}
	})
}

// TestSpoolLimit: an archive that never ends does not fill the disk.
func TestSpoolLimit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "archive")
	endless := io.MultiReader(strings.NewReader("0123456789"), endlessReader{})
	if err := spool(endless, path, 10); !errors.Is(err, ErrTooLarge) {
		t.Errorf("one byte more than allowed: %v", err)
	}
	os.Remove(path)
	if err := spool(strings.NewReader("0123456789"), path, 10); err != nil {
		t.Errorf("as many bytes as allowed: %v", err)
	}
}

type endlessReader struct{}

func (endlessReader) Read(p []byte) (int, error) { return len(p), nil }
