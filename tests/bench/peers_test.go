package bench

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/tests/node"
)

var (
	peerPulls = flag.Int("peer-pulls", 3, "how often TestBenchPeers pulls each image")
	peerScale = flag.Int("peer-scale", 1000, "pods that TestBenchPeers brings up by each driver of subpod")
	// otherScale bounds the time: others take seconds a pod.
	otherScale = flag.Int("other-scale", 40, "pods that TestBenchPeers brings up by each other runtime")
)

// Calls of TestBenchPeers beside those of a pod's life.
const (
	runRemoved  = "run --rm true"
	pullFiles   = "pull, files"
	pullRandom  = "pull, random"
	untarFiles  = "tar -xz, files"
	untarRandom = "tar -xz, random"
)

// peer is a column of the table: what one runtime takes.
type peer struct {
	Name   string
	Took   series             // by call
	Many   time.Duration      // for as many pods as Run.Pods, Run.Concurrency at a time
	PodPSS int                // of one more pod without its workload, KiB
	Idle   int                // of everything without pods, KiB
	Ways   map[string]wayTook // by way, as in ways
	Up     []time.Duration    // each pod's start, with all before it running
	Scale  series             // lists and restarts with that many pods
	CPU    float64            // of a core, with that many pods and nothing to do
}

// peersRun is all that TestBenchPeers finds.
type peersRun struct {
	Date, Kernel, CPU string
	Cores             int
	Runs, Pods        int
	Concurrency       int
	Sizes             map[string]int64 // bytes of the images
	Floor             *peer
	Peers             []*peer
}

// TestBenchPeers measures subpod, containerd and podman beside each other and beside
// what they stand on, all without root, in one run. Run it by 'make bench-peers'.
func TestBenchPeers(t *testing.T) {
	r := &peersRun{Date: time.Now().Format("2006-01-02"), Kernel: kernel(), CPU: processor(), Cores: cores(), Runs: *runs, Pods: *pods,
		Concurrency: *concurrency, Sizes: map[string]int64{}, Floor: &peer{Name: "floor", Took: series{}, Ways: map[string]wayTook{}}}
	images := map[string][]string{} // pullFiles, pullRandom → a reference for each pull
	layers := map[string][][][]byte{}
	for i, name := range []string{pullFiles, pullRandom} {
		layers[name] = variants(t, pulled[i].layers(t), *peerPulls)
		images[name] = serveImages(t, layers[name])
		for _, l := range layers[name][0] {
			r.Sizes[name] += int64(len(l))
		}
	}
	reg := node.Registry(t)
	add := func(name string, measure func(*testing.T) *peer) {
		t.Run(name, func(t *testing.T) {
			if p := measure(t); p != nil {
				r.Peers = append(r.Peers, p)
			}
		})
	}
	t.Run("floor", func(t *testing.T) { measureUntar(t, layers, r.Floor) })
	for _, d := range []string{"fuse-overlayfs", "native"} {
		add("subpod, "+d, func(t *testing.T) *peer { return measureSubpod(t, d, images, r.Floor) })
	}
	add("containerd", func(t *testing.T) *peer { return measureContainerd(t, reg, images) })
	add("podman", func(t *testing.T) *peer { return measurePodman(t, reg, images) })
	r.write(t)
}

// write prints the table, and keeps it with its figures and the charts. Of a run that has
// failed in part it is what there is.
func (r *peersRun) write(t *testing.T) {
	table := r.table()
	fmt.Print("\n", table)
	dir := filepath.Join(node.Tree(), ".cache/user/peers")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	figures, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	files := r.charts()
	files["table.md"], files["figures.json"] = table, string(figures)
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	fmt.Printf("\nThe table, its figures and the charts are in .cache/user/peers.\n")
}

// measureUntar unpacks the layers of the images by tar: the floor of a pull.
func measureUntar(t *testing.T, images map[string][][][]byte, floor *peer) {
	dir := t.TempDir()
	settle(t, dir)
	var unpacked []string
	for name, call := range map[string]string{pullFiles: untarFiles, pullRandom: untarRandom} {
		for i, layers := range images[name] {
			script, _ := untarScript(t, dir, layers)
			to := filepath.Join(dir, fmt.Sprint(name, i))
			unpacked = append(unpacked, to)
			unix.Sync()
			if err := floor.Took.measure(call, func() error {
				return run("unshare", "--map-root-user", "--map-auto", "--", "sh", "-c", script, "sh", to)
			}); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, to := range unpacked {
		if err := node.RemoveAll(to); err != nil {
			t.Fatal(err)
		}
	}
}
