package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"

	digest "github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// layoutFiles returns the files of an OCI image layout with one image in it.
func layoutFiles(img *image) (map[string][]byte, error) {
	files := map[string][]byte{}
	for d, data := range img.blobs {
		files[filepath.Join("blobs", "sha256", d.Encoded())] = data
	}
	files[filepath.Join("blobs", "sha256", img.top.Digest.Encoded())] = img.topData

	top := img.top
	top.Annotations = map[string]string{v1.AnnotationRefName: img.names[0]}
	index, err := json.Marshal(v1.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: v1.MediaTypeImageIndex,
		Manifests: []v1.Descriptor{top},
	})
	if err != nil {
		return nil, err
	}
	files[v1.ImageIndexFile] = index
	files[v1.ImageLayoutFile], err = json.Marshal(v1.ImageLayout{Version: v1.ImageLayoutVersion})
	return files, err
}

func writeLayout(dir string, img *image) error {
	files, err := layoutFiles(img)
	if err != nil {
		return err
	}
	for name, data := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func writeOCIArchive(file string, img *image) error {
	files, err := layoutFiles(img)
	if err != nil {
		return err
	}
	return writeTar(file, files)
}

// writeDockerArchive writes what "docker save" would.
func writeDockerArchive(file string, img *image) error {
	configName := digest.FromBytes(img.config).Encoded() + ".json"
	files := map[string][]byte{configName: img.config}
	entry := struct {
		Config   string
		RepoTags []string
		Layers   []string
	}{Config: configName, RepoTags: img.names}
	for _, plain := range img.plain {
		name := digest.FromBytes(plain).Encoded() + "/layer.tar"
		files[name] = plain
		entry.Layers = append(entry.Layers, name)
	}
	manifest, err := json.Marshal([]any{entry})
	if err != nil {
		return err
	}
	files["manifest.json"] = manifest
	return writeTar(file, files)
}

func writeTar(file string, files map[string][]byte) error {
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for name, data := range files {
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(data)), ModTime: made}); err != nil {
			return err
		}
		if _, err := tw.Write(data); err != nil {
			return err
		}
	}
	if err := tw.Close(); err != nil {
		return err
	}
	return os.WriteFile(file, buf.Bytes(), 0o644)
}
