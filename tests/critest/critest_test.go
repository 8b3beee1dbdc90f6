// Package critest runs the CRI validation suite of the Kubernetes project against
// the daemon, from inside the node, and compares the outcome with three committed
// lists. A spec that fails without being in known-failures.txt (which is empty, and
// is to stay so) fails the test, and so does one that is listed and passes.
// conditional.txt has the specs that critest fails where a machine lacks something;
// the test looks whether this one does. A spec that is skipped without being in
// skipped.txt fails it, too.
//
//	go test ./tests/critest -driver native -handler runc
package critest

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/subpod/subpod/tests/leak"
	"github.com/subpod/subpod/tests/node"
	"github.com/subpod/subpod/tests/registry"
)

func TestMain(m *testing.M) { node.Main(m) }

var (
	focus   = flag.String("focus", "", "run only the specs whose name matches, and compare only these")
	driver  = flag.String("driver", "fuse-overlayfs", "storage driver: fuse-overlayfs or native")
	handler = flag.String("handler", "crun", "runtime handler: crun or runc")
)

func TestCritest(t *testing.T) {
	known, err := readList("known-failures.txt", here())
	if err != nil {
		t.Fatal(err)
	}
	conditional, err := readList("conditional.txt", here())
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(known, conditional)
	allowed, err := readList("skipped.txt", here())
	if err != nil {
		t.Fatal(err)
	}
	n := node.Start(t, node.Options{
		Registries: registries(t),
		Config:     fmt.Sprintf("[storage]\ndriver = %q\n[runtime]\ndefault_handler = %q\n[network]\nbackend = \"bridge\"\n", *driver, *handler),
	})
	// The bridge and its rules are made for the first pod and stay.
	before := n.Look()
	report := filepath.Join(n.Dir, "junit.xml")
	start := time.Now()
	log, runErr := run(t, n, report)
	data, err := os.ReadFile(report)
	if err != nil {
		t.Fatalf("critest has written no report: %v\n%s\n%v", runErr, tail(log, 100), err)
	}
	results, err := parse(data)
	if err != nil {
		t.Fatal(err)
	}
	if *focus != "" {
		pattern := regexp.MustCompile(*focus)
		results = results.only(pattern)
		known, allowed = known.only(pattern), allowed.only(pattern)
	}
	for _, problem := range compare(results, known, allowed) {
		t.Error(problem)
	}
	if t.Failed() {
		keep(t, log, data)
	}
	removeAll(n)
	for _, left := range leak.Left(before, n.Look) {
		// What the first pod has made stays.
		if !strings.HasPrefix(left, "rule ") && !strings.HasPrefix(left, "link subpod") {
			t.Errorf("left in the node: %s", left)
		}
	}
	t.Logf("critest took %.0f s", time.Since(start).Seconds())
	fmt.Printf("critest, %s, %s: %s\n", *driver, *handler, results.count())
}

// registries takes images from the test registry, but for the one that is named by
// the digest of a public image, where that can be had.
func registries(t *testing.T) string {
	conf := registry.Conf(node.Registry(t))
	if internet() {
		conf += "\n[[registry]]\nlocation = \"gcr.io/k8s-staging-cri-tools/test-image-digest\"\n"
	}
	return conf
}

// run starts critest in the node. It wants a working directory that any user can
// pass through, and a /tmp to write to.
func run(t *testing.T, n *node.Node, report string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	endpoint := "unix://" + n.Socket
	args := []string{
		"nsenter", "--", "env", "-C", "/tmp", node.Path(t, node.Critest),
		"-runtime-endpoint=" + endpoint, "-image-endpoint=" + endpoint,
		"-runtime-service-timeout=40s", "-ginkgo.junit-report=" + report, "-ginkgo.no-color",
	}
	if *focus != "" {
		args = append(args, "-ginkgo.focus="+*focus)
	}
	cmd := n.Command(ctx, node.Path(t, node.Subpod), args...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// removeAll takes away what failed specs have left: that is their fault.
func removeAll(n *node.Node) {
	for _, id := range strings.Fields(n.Crictl("pods", "-q")) {
		n.TryCrictl("rmp", "-f", id)
	}
}

// keep writes log and report where they can be read after the run.
func keep(t *testing.T, log string, report []byte) {
	dir := os.Getenv("SUBPOD_KEEP_DIR")
	if dir == "" {
		t.Logf("the end of critest's output (SUBPOD_KEEP_DIR=DIR keeps all of it):\n%s", tail(log, 60))
		return
	}
	if err := os.WriteFile(filepath.Join(dir, "critest.log"), []byte(log), 0o644); err != nil {
		t.Log(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "critest.xml"), report, 0o644); err != nil {
		t.Log(err)
	}
}

func tail(text string, lines int) string {
	all := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
