package storage

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// tarOf packs files into a tar archive.
func tarOf(t testing.TB, files map[string][]byte) []byte {
	t.Helper()
	l := layer{}
	for name, data := range files {
		l[name] = entry{content: string(data)}
	}
	return l.tar(t)
}

func tarOfDir(t testing.TB, dir string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// dockerArchive writes what docker save writes for one image with two tags.
func dockerArchive(t testing.TB, path string, mark string) (id string) {
	t.Helper()
	l := layer{"f": {content: mark}}.tar(t)
	img := build(t, imageSpec{tars: [][]byte{l}})
	m := mustJSON(t, []map[string]any{{"Config": "config.json", "RepoTags": []string{"example.com/team/app:v1", "short:2"}, "Layers": []string{"layer.tar"}}})
	writeFile(t, path, string(tarOf(t, map[string][]byte{"config.json": img.config, "layer.tar": l, "manifest.json": m})))
	return img.id()
}

func TestLoad(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	one, two := sample(t, "one"), sample(t, "two")
	layout := writeLayout(t, filepath.Join(dir, "layout"), map[string]built{"example.com/app:one": one, "two": two})
	archive := writeFile(t, filepath.Join(dir, "oci.tar"), string(tarOfDir(t, layout)))
	zipped := writeFile(t, filepath.Join(dir, "oci.tar.gz"), string(gzipped(t, tarOfDir(t, layout))))
	docker := filepath.Join(dir, "docker.tar")
	dockerID := dockerArchive(t, docker, "docker")
	dockerZipped := writeFile(t, filepath.Join(dir, "docker.tar.gz"), string(gzipped(t, []byte(mustRead(t, docker)))))
	for source, want := range map[string][]string{
		"oci:" + layout:                          {one.id() + " example.com/app:one", two.id() + " "},
		layout:                                   {one.id() + " example.com/app:one", two.id() + " "},
		"oci:" + layout + ":two":                 {two.id() + " "},
		"oci:" + layout + ":example.com/app:one": {one.id() + " example.com/app:one"},
		"oci-archive:" + archive + ":two":        {two.id() + " "},
		archive:                                  {one.id() + " example.com/app:one", two.id() + " "},
		zipped:                                   {one.id() + " example.com/app:one", two.id() + " "},
		docker:                                   {dockerID + " docker.io/library/short:2,example.com/team/app:v1"},
		dockerZipped:                             {dockerID + " docker.io/library/short:2,example.com/team/app:v1"},
		"docker-archive:" + docker + ":example.com/team/app:v1": {dockerID + " example.com/team/app:v1"},
	} {
		t.Run(strings.ReplaceAll(strings.TrimPrefix(source, dir), ":", "="), func(t *testing.T) {
			s := openStore(t, testOptions(t, "/tmp/load-"+one.id()[:4]+strings.ReplaceAll(t.TempDir(), "/", "-"), DriverNative))
			images, err := s.Images.Load(ctx, source)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, img := range images {
				slices.Sort(img.RepoTags)
				got = append(got, img.ID+" "+strings.Join(img.RepoTags, ","))
				if len(img.RepoDigests) > 0 {
					t.Errorf("RepoDigests %v of an image that is in no registry", img.RepoDigests)
				}
				if _, err := s.Rootfs.Create(ctx, RootfsSpec{ID: img.ID, ImageID: img.ID}); err != nil {
					t.Error(err)
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("loaded %v, want %v", got, want)
			}
			if left, err := os.ReadDir(s.layers.dirs.tmp()); err != nil || len(left) > 0 {
				t.Errorf("temporary files left: %v %v", left, err)
			}
		})
	}
}

func TestLoadBad(t *testing.T) {
	dir := t.TempDir()
	layout := writeLayout(t, filepath.Join(dir, "layout"), map[string]built{"example.com/app:one": sample(t, "one")})
	foreign := writeLayout(t, filepath.Join(dir, "foreign"), map[string]built{"x": build(t, imageSpec{arch: "s390x", layers: []layer{{"f": {content: "x"}}}})})
	cut := []byte(mustRead(t, writeFile(t, filepath.Join(dir, "whole"), string(tarOfDir(t, layout)))))
	damaged := writeLayout(t, filepath.Join(dir, "damaged"), map[string]built{"x": sample(t, "one")})
	blobs, _ := filepath.Glob(filepath.Join(damaged, "blobs/sha256/*"))
	for _, b := range blobs {
		if data := mustRead(t, b); !strings.HasPrefix(data, "{") {
			writeFile(t, b, data[:len(data)-10]+strings.Repeat("x", 10))
		}
	}
	s := openStore(t, testOptions(t, t.TempDir(), DriverNative))
	gone := filepath.Join(dir, "gone")
	for source, want := range map[string]error{
		"oci:" + gone:              ErrImageNotFound,
		gone:                       ErrImageNotFound,
		"oci:" + layout + ":other": ErrImageNotFound,
		dir:                        ErrUnsupported,
		"oci:" + foreign:           ErrUnsupported,
		"oci:" + damaged:           ErrCorrupt,
		writeFile(t, filepath.Join(dir, "junk"), "junk"):                                   ErrCorrupt,
		writeFile(t, filepath.Join(dir, "cut.tar"), string(cut[:len(cut)/3])):              ErrCorrupt,
		writeFile(t, filepath.Join(dir, "other.tar"), string(layer{"f": {}}.tar(t))):       ErrUnsupported,
		"docker-archive:" + writeFile(t, filepath.Join(dir, "docker"), string(cut)) + ":x": ErrCorrupt,
	} {
		_, err := s.Images.Load(context.Background(), source)
		t.Log(err)
		if !errors.Is(err, want) {
			t.Errorf("Load(%s): %v, want %v", source, err, want)
		}
		wantClean(t, s, 0)
	}
}
