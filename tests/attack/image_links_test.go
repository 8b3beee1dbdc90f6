package attack

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// entry is a file of a hostile image: a link, a directory or a file.
type entry struct {
	name, link, content string
	dir                 bool
}

func (e entry) header() *tar.Header {
	switch {
	case e.link != "":
		return &tar.Header{Name: e.name, Typeflag: tar.TypeSymlink, Linkname: e.link, Mode: 0o777}
	case e.dir:
		return &tar.Header{Name: e.name + "/", Typeflag: tar.TypeDir, Mode: 0o755}
	}
	return &tar.Header{Name: e.name, Typeflag: tar.TypeReg, Size: int64(len(e.content)), Mode: 0o644}
}

func tarOf(t *testing.T, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if err := w.WriteHeader(e.header()); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(e.content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// load makes an image of one layer with the entries, and loads it.
func (c *cage) load(name, user, workdir string, entries ...entry) (image string) {
	c.Helper()
	return c.loadConfig(name, map[string]any{"User": user, "WorkingDir": workdir, "Cmd": []string{"/attack"}}, entries...)
}

func (c *cage) loadConfig(name string, container map[string]any, entries ...entry) (image string) {
	c.Helper()
	layer := tarOf(c.T, entries...)
	image = "localhost/" + name + ":1"
	config, err := json.Marshal(map[string]any{
		"architecture": "amd64", "os": "linux",
		"config": container,
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer))}},
	})
	if err != nil {
		c.Fatal(err)
	}
	manifest := fmt.Sprintf(`[{"Config":"config.json","RepoTags":[%q],"Layers":["layer.tar"]}]`, image)
	archive := filepath.Join(c.n.Dir, name+".tar")
	err = os.WriteFile(archive, tarOf(c.T, entry{name: "config.json", content: string(config)}, entry{name: "layer.tar", content: string(layer)},
		entry{name: "manifest.json", content: manifest}), 0o600)
	if err != nil {
		c.Fatal(err)
	}
	if _, err := c.n.Subpod("load", archive); err != nil {
		c.Fatal(err)
	}
	return image
}
