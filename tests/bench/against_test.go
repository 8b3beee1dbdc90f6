package bench

import (
	"flag"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/tests/node"
	"github.com/subpod/subpod/tests/registry"
)

var (
	against   = flag.String("against", "", "directory with the programs that TestBenchAgainst compares with")
	pullsOnly = flag.Bool("pulls-only", false, "TestBenchAgainst measures nothing but pulls, in each run")
)

// Calls that are measured beside those of a pod's life.
const (
	pullBig   = "pull of 128 MiB, random"
	pullSmall = "pull of busybox"
	pullAgain = "pull of an unchanged image"
	runTrue   = "subpod run --rm true"

	processorPart = ", CPU" // of all of the node
)

// version is a node of one version of the programs.
type version struct {
	bench
	took series
	idle int // PSS of all processes of the node without pods, KiB
}

// TestBenchAgainst runs two versions of the programs beside each other, in turns: what
// one does to the machine, it does to both.
func TestBenchAgainst(t *testing.T) {
	if *against == "" {
		t.Skip("no -against: 'make bench-against BASE=COMMIT'")
	}
	big := serveImage(t, 2, 64)
	base, this := startVersion(t, *against, big), startVersion(t, "", big)
	both := []*version{base, this}
	for i := range *runs {
		slices.Reverse(both) // neither is always the first
		for _, v := range both {
			if !*pullsOnly {
				v.live(t, fmt.Sprintf("p%d", i))
			}
			v.pull(t, pullAgain, image)
			if i%5 == 0 || *pullsOnly {
				v.remove(t, big)
				v.pull(t, pullBig, big)
				v.remove(t, image)
				v.pull(t, pullSmall, image)
			}
		}
	}
	var out strings.Builder
	fmt.Fprintf(&out, "\n%d runs in turns, milliseconds: medians, and the fastest, which other work on the machine disturbs least\n  %-28s %8s %8s %8s %10s %8s %8s\n",
		*runs, "", "base", "this", "ratio", "base", "this", "ratio")
	for _, name := range []string{runPod, create, start, up, execSync, stop, remove, stopPod, removePod, whole, runTrue,
		pullAgain, pullSmall, pullSmall + processorPart, pullBig, pullBig + processorPart} {
		if len(this.took[name]) == 0 {
			continue
		}
		b, n := base.took.at(name, .5), this.took.at(name, .5)
		least, now := base.took.at(name, 0), this.took.at(name, 0)
		fmt.Fprintf(&out, "  %-28s %8.1f %8.1f %8.2f %10.1f %8.1f %8.2f\n", name, ms(b), ms(n), float64(n)/float64(b), ms(least), ms(now), float64(now)/float64(least))
	}
	fmt.Fprintf(&out, "  %-28s %8d %8d %8.2f\n", "PSS of an idle node, KiB", base.idle, this.idle, float64(this.idle)/float64(base.idle))
	if !*pullsOnly {
		pb, pt := base.podPSS(t), this.podPSS(t)
		fmt.Fprintf(&out, "  %-28s %8d %8d %8.2f\n", "PSS a pod, KiB", pb, pt, float64(pt)/float64(pb))
	}
	fmt.Print(out.String())
}

// live measures a pod's life, and a container's of its own.
func (v *version) live(t *testing.T, name string) {
	t.Helper()
	if err := v.cycle(t.Context(), name, v.took); err != nil {
		t.Fatal(err)
	}
	if err := v.took.measure(runTrue, func() error {
		_, err := v.n.Subpod("run", "--rm", image, "true")
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

func startVersion(t *testing.T, bin, big string) *version {
	t.Helper()
	addr, _, _ := strings.Cut(big, "/")
	registries := registry.Conf(node.Registry(t)) + fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\n", addr)
	config := "[daemon]\nlog_level = \"warn\"\n"
	if *driver != "" {
		config += fmt.Sprintf("[storage]\ndriver = %q\n", *driver)
	}
	n := node.Start(t, node.Options{Bin: bin, Config: config, Registries: registries})
	v := &version{bench: bench{n: n, cri: n.CRI(), logs: filepath.Join(n.Dir, "logs")}, took: series{}}
	n.Crictl("pull", image)
	n.Crictl("pull", big)
	if err := v.cycle(t.Context(), "warm-up", series{}); err != nil {
		t.Fatal(err)
	}
	v.idle = v.pss("workload")
	return v
}

// pss sums up the processes of all kinds but those that begin with one of except.
func (v *version) pss(except ...string) (sum int) {
	for kind, u := range memory(v.n) {
		if !slices.ContainsFunc(except, func(e string) bool { return strings.HasPrefix(kind, e) }) {
			sum += u.pss
		}
	}
	return sum
}

// podPSS is what the processes of one more pod cost, without what runs in it: the heap
// of the server grows and shrinks by more.
func (v *version) podPSS(t *testing.T) int {
	t.Helper()
	const server = "subpod-server"
	before := v.pss("workload", server)
	ids, err := v.many(t.Context(), *pods, *concurrency)
	if err != nil {
		t.Fatal(err)
	}
	after := v.pss("workload", server)
	if err := v.removeAll(t.Context(), ids, *concurrency); err != nil {
		t.Fatal(err)
	}
	return (after - before) / *pods
}

func (v *version) pull(t *testing.T, name, ref string) {
	t.Helper()
	before, begin := processorTime(v.n.PID(), true), time.Now()
	if _, err := v.cri.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}); err != nil {
		t.Fatal(err)
	}
	v.took.add(name, time.Since(begin))
	v.took.add(name+processorPart, processorTime(v.n.PID(), true)-before)
}

func (v *version) remove(t *testing.T, ref string) {
	t.Helper()
	if _, err := v.cri.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}); err != nil {
		t.Fatal(err)
	}
}
