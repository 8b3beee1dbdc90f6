package bench

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/tests/node"
)

var pullImage = flag.String("pull-image", "", "the one image of TestBenchPullFloor: files or random; both without")

// pulled are the images of TestBenchPullFloor: one of many files, which compress as
// programs and texts do, and one of few, which do not.
var pulled = []struct {
	name   string
	layers func(t *testing.T) [][]byte
}{
	{"files", func(t *testing.T) [][]byte {
		// 7,200 files in 4 layers, 59 MB compressed.
		layers := make([][]byte, 4)
		for i := range layers {
			layers[i] = compressed(t, filesLayer(t, fmt.Sprint("tree", i), 1800))
		}
		return layers
	}},
	{"random", func(t *testing.T) [][]byte {
		return [][]byte{compressed(t, randomLayer(t, "a", 105)), compressed(t, randomLayer(t, "b", 106))}
	}},
}

// TestBenchPullFloor measures cold pulls beside "tar -xz" of the same layers, in turns,
// with the processor time of each.
func TestBenchPullFloor(t *testing.T) {
	for _, p := range pulled {
		if *pullImage != "" && p.name != *pullImage {
			continue
		}
		layers := p.layers(t)
		ref := serveLayers(t, layers)
		addr, _, _ := strings.Cut(ref, "/")
		config := "[daemon]\nlog_level = \"warn\"\n"
		if *driver != "" {
			config += fmt.Sprintf("[storage]\ndriver = %q\n", *driver)
		}
		n := node.Start(t, node.Options{Config: config, Registries: fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\n", addr)})
		benchPullFloor(t, n, p.name, ref, layers)
	}
}

func benchPullFloor(t *testing.T, n *node.Node, name, ref string, layers [][]byte) {
	cri := n.CRI()
	image := &runtimeapi.ImageSpec{Image: ref}
	script := "set -e; mkdir \"$1\""
	bytes := 0
	for i, layer := range layers {
		file := filepath.Join(n.Dir, fmt.Sprintf("layer%d.tgz", i))
		if err := os.WriteFile(file, layer, 0o644); err != nil {
			t.Fatal(err)
		}
		script += "; tar -xzf " + file + " -C \"$1\""
		bytes += len(layer)
	}
	const pull, floor = "pull", "tar -xz"
	took := series{}
	dir := filepath.Join(n.Dir, "unpacked")
	for i := range *runs + 1 {
		into := took
		if i == 0 {
			into = series{}
		}
		if err := into.measure(pull, func() error {
			_, err := cri.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: image})
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if _, err := cri.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: image}); err != nil {
			t.Fatal(err)
		}
		if err := into.measure(floor, func() error {
			return exec.Command("unshare", "--map-root-user", "--map-auto", "--", "sh", "-c", script, "sh", dir).Run()
		}); err != nil {
			t.Fatal(err)
		}
		if err := node.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	fmt.Printf("  %s, %d MB in %d layers, %d runs in turns: pull %v (least %v), tar -xz %v (least %v); ratio %.2f (of the least %.2f)\n",
		name, bytes/1e6, len(layers), *runs, took.at(pull, .5).Round(time.Millisecond), took.at(pull, 0).Round(time.Millisecond),
		took.at(floor, .5).Round(time.Millisecond), took.at(floor, 0).Round(time.Millisecond),
		float64(took.at(pull, .5))/float64(took.at(floor, .5)), float64(took.at(pull, 0))/float64(took.at(floor, 0)))
}

func compressed(t *testing.T, layer []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(layer); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// filesLayer is a tar archive of files of all sizes up to 200 KiB, of words and numbers.
func filesLayer(t *testing.T, dir string, files int) []byte {
	t.Helper()
	random := rand.New(rand.NewPCG(1, uint64(files)))
	words := make([][]byte, 4096)
	for i := range words {
		word := make([]byte, 2+random.IntN(9))
		for j := range word {
			word[j] = byte('a' + random.IntN(26))
		}
		words[i] = append(word, ' ')
	}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for i := range files {
		size := 1 << (6 + random.IntN(12))
		content := make([]byte, 0, size+32)
		for len(content) < size {
			content = append(content, words[random.IntN(len(words))]...)
			if random.IntN(3) == 0 {
				content = append(content, byte(random.IntN(256)), byte(random.IntN(256)))
			}
		}
		name := fmt.Sprintf("%s/%d/%d/file%d", dir, i/180, i/18%10, i)
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content))}); err != nil {
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
