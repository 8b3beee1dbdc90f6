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

	"golang.org/x/sys/unix"
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
		images := variants(t, p.layers(t), *runs+1)
		refs := serveImages(t, images)
		addr, _, _ := strings.Cut(refs[0], "/")
		config := "[daemon]\nlog_level = \"warn\"\n"
		if *driver != "" {
			config += fmt.Sprintf("[storage]\ndriver = %q\n", *driver)
		}
		n := node.Start(t, node.Options{Config: config, Registries: fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\n", addr)})
		benchPullFloor(t, n, p.name, refs, images)
	}
}

func benchPullFloor(t *testing.T, n *node.Node, name string, refs []string, images [][][]byte) {
	cri := n.CRI()
	const pull, floor = "pull", "tar -xz"
	took := series{}
	bytes := 0
	settle(t, n.Dir)
	for i, ref := range refs {
		into := took
		if i == 0 {
			into = series{}
		}
		dir := filepath.Join(n.Dir, fmt.Sprint("unpacked", i))
		script, size := untarScript(t, n.Dir, images[i])
		bytes = size
		unix.Sync() // neither is to pay for what the other has written
		before := processorTime(n.PID(), true)
		if err := into.measure(pull, func() error {
			_, err := cri.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
			return err
		}); err != nil {
			t.Fatal(err)
		}
		into.add(pull+processorPart, processorTime(n.PID(), true)-before)
		unix.Sync()
		untar := exec.Command("unshare", "--map-root-user", "--map-auto", "--", "sh", "-c", script, "sh", dir)
		if err := into.measure(floor, untar.Run); err != nil {
			t.Fatal(err)
		}
		into.add(floor+processorPart, untar.ProcessState.UserTime()+untar.ProcessState.SystemTime())
	}
	for i := range refs {
		if err := node.RemoveAll(filepath.Join(n.Dir, fmt.Sprint("unpacked", i))); err != nil {
			t.Fatal(err)
		}
	}
	fmt.Printf("  %s, %d MB in %d layers, %d runs in turns, medians and the least:\n", name, bytes/1e6, len(images[0]), *runs)
	for _, part := range []string{"", processorPart} {
		a, b, least, floorLeast := took.at(pull+part, .5), took.at(floor+part, .5), took.at(pull+part, 0), took.at(floor+part, 0)
		fmt.Printf("  %-12s %6d %6d ms, tar -xz %6d %6d ms; ratios %.2f %.2f\n", pull+part, a.Milliseconds(), least.Milliseconds(),
			b.Milliseconds(), floorLeast.Milliseconds(), float64(a)/float64(b), float64(least)/float64(floorLeast))
	}
}

// untarScript writes layers into files of dir, and returns a script that unpacks them into
// the directory of its first argument, and their size.
func untarScript(t *testing.T, dir string, layers [][]byte) (script string, size int) {
	t.Helper()
	script = "set -e; mkdir \"$1\""
	for i, layer := range layers {
		file := filepath.Join(dir, fmt.Sprintf("layer%d.tgz", i))
		if err := os.WriteFile(file, layer, 0o644); err != nil {
			t.Fatal(err)
		}
		script += "; tar -xzf " + file + " -C \"$1\""
		size += len(layer)
	}
	return script, size
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
