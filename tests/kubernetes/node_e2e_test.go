package kubernetes

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/subpod/subpod/tests/node"
	"github.com/subpod/subpod/tests/registry"
)

var (
	nodeE2E      = flag.String("node-e2e", "", "the part of the node e2e suite to run: conformance, rest or all")
	nodeE2EFocus = flag.String("node-e2e-focus", "", "specs of it to run, as a regular expression")
	nodeE2EDir   = flag.String("node-e2e-report", "", "a directory that the test user can write to, for what the suite leaves")
)

// nodeE2ELabels is what both parts of the suite are of: what other specs need of a machine
// is theirs alone, or a host's root.
const nodeE2ELabels = "NodeConformance && !Serial && !Slow && !Flaky && !Disruptive && Environment: isEmpty"

// nodeE2EParts are the parts of the suite, and how many specs each has.
var nodeE2EParts = []struct {
	name, labels string
	specs        int
}{
	{"conformance", nodeE2ELabels + " && Conformance", 140},
	{"rest", nodeE2ELabels + " && !Conformance", 290},
}

// nodeE2EKubelet is added to what "subpod kubernetes config" prints. The machine that runs
// tests may have little left of its disk.
const nodeE2EKubelet = `
serializeImagePulls: false
fileCheckFrequency: 10s
volumeStatsAggPeriod: 10s
evictionPressureTransitionPeriod: 30s
evictionHard: {memory.available: "50Mi", nodefs.available: "200Mi", nodefs.inodesFree: "1%", imagefs.available: "200Mi"}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
`

// nodeE2ESystem is a specification of the machine that any fits: the suite's own asks for
// modules and cgroups of the host's root.
const nodeE2ESystem = "os: Linux\nkernelSpec: {versions: ['.*']}\n"

// TestNodeE2E runs Kubernetes' own suite for nodes. A spec that fails must be in
// node_e2e.txt, with the reason.
func TestNodeE2E(t *testing.T) {
	if *nodeE2E == "" {
		t.Skip("the node e2e suite takes half an hour: make test-node-e2e")
	}
	expected := expectedFailures(t)
	for _, part := range nodeE2EParts {
		if *nodeE2E != part.name && *nodeE2E != "all" {
			continue
		}
		t.Run(part.name, func(t *testing.T) {
			start := time.Now()
			specs := runNodeE2E(t, part.labels)
			r := sortSpecs(specs, expected)
			t.Logf("%s in %v:\n%s", part.name, time.Since(start).Round(time.Second), r)
			if len(r.unexpected) > 0 {
				t.Errorf("%d failures that node_e2e.txt does not have", len(r.unexpected))
			}
			if *nodeE2EFocus == "" && r.count() != part.specs {
				t.Errorf("%d specs, want %d", r.count(), part.specs)
			}
		})
	}
}

// A spec is what is used of an entry of ginkgo's JSON report.
type spec struct {
	ContainerHierarchyTexts []string
	LeafNodeType            string
	LeafNodeText            string
	State                   string
	Failure                 struct{ Message string }
}

// name returns the name as ginkgo prints it, without labels.
func (s spec) name() string {
	return strings.Join(append(slices.Clone(s.ContainerHierarchyTexts), s.LeafNodeText), " ")
}

// removeHostPaths removes what the specs about hostPath leave in the machine's /tmp: what
// another account has left there makes them fail.
func removeHostPaths(t *testing.T) {
	t.Helper()
	for _, path := range []string{"/tmp/test-file", "/tmp/sub-path"} {
		if err := os.RemoveAll(path); err != nil {
			t.Fatalf("another account's run of the suite has left it, and the specs about hostPath write it: remove it: %v", err)
		}
	}
}

// runNodeE2E runs the specs of a label filter on a node of their own.
func runNodeE2E(t *testing.T, labels string) []spec {
	removeHostPaths(t)
	t.Cleanup(func() { removeHostPaths(t) })
	images := filepath.Join(filepath.Dir(*programs), "registry")
	reg, err := registry.Start(registry.Options{Binary: node.Path(t, node.RegistryBinary), Dir: images, ReadOnly: true})
	must(t, err)
	t.Cleanup(func() { _ = reg.Stop() })
	n := node.Start(t, node.Options{
		Config: node.Bridge, Registries: registry.Conf(reg.Addr),
		Env: []string{"PATH=" + *programs + ":" + os.Getenv("PATH") + ":/usr/sbin:/sbin"},
	})
	dir := filepath.Join(n.Dir, "e2e")
	if *nodeE2EDir != "" {
		dir, err = os.MkdirTemp(*nodeE2EDir, "node-e2e-")
		must(t, err)
	}
	must(t, os.MkdirAll(dir, 0o755))
	// The suite looks for its kubelet beside itself.
	for _, name := range []string{"kubelet", "e2e_node.test"} {
		must(t, os.Symlink(filepath.Join(*programs, name), filepath.Join(dir, name)))
	}
	must(t, errors.Join(
		os.WriteFile(filepath.Join(dir, "kubelet.yaml"), []byte(n.MustSubpod("kubernetes", "config", "kubelet")+nodeE2EKubelet), 0o644),
		os.WriteFile(filepath.Join(dir, "system.yaml"), []byte(nodeE2ESystem), 0o644)))
	script := filepath.Join(node.Tree(), "tests/kubernetes/node_e2e.sh")
	ctx, cancel := context.WithTimeout(t.Context(), 65*time.Minute)
	defer cancel()
	cmd := n.Command(ctx, node.Path(t, node.Subpod), "nsenter", "--workdir", "/", "--",
		"unshare", "--mount", "--cgroup", "--propagation", "unchanged", script, dir,
		"--no-color", "--label-filter="+labels, "--focus="+*nodeE2EFocus, "--procs=8", "--timeout=60m",
		"--output-dir="+dir, "--json-report=report.json", filepath.Join(dir, "e2e_node.test"), "--",
		"--container-runtime-endpoint=unix://"+n.Socket, "--prepull-images=false", "--report-dir="+dir,
		"--system-spec-file="+filepath.Join(dir, "system.yaml"), "--kubelet-config-file="+filepath.Join(dir, "kubelet.yaml"),
		"--dns-domain=cluster.local", // that of subpod's configuration
		"--feature-gates=PodAndContainerStatsFromCRI=true", "--kubelet-flags=--system-cgroups= --kubelet-cgroups= --runtime-cgroups=")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stdout // it tells at length, and for long
	cmd.WaitDelay = time.Minute
	runErr := cmd.Run() // not 0 for expected failures, too: the report has which
	data, err := os.ReadFile(filepath.Join(dir, "report.json"))
	if err != nil {
		t.Fatalf("no report: %v; %v; the end of kubelet.log:\n%s", errors.Join(runErr, err), ctx.Err(), tail(filepath.Join(dir, "kubelet.log"), 40))
	}
	var reports []struct{ SpecReports []spec }
	must(t, json.Unmarshal(data, &reports))
	if len(reports) != 1 {
		t.Fatalf("reports of %d suites", len(reports))
	}
	return reports[0].SpecReports
}

// results are specs by how they ended, with what there is to say of each.
type results struct {
	passed                       int
	skipped                      map[string]int // by the reason
	expected, unexpected, mended []string
}

func (r results) count() int {
	n := r.passed + len(r.expected) + len(r.unexpected)
	for _, specs := range r.skipped {
		n += specs
	}
	return n
}

// sortSpecs sorts specs. Those that the filter left out have no message.
func sortSpecs(specs []spec, expected map[string]string) results {
	r := results{skipped: map[string]int{}}
	for _, s := range specs {
		reason, known := expected[s.name()]
		switch s.State {
		case "passed":
			if s.LeafNodeType != "It" {
				continue
			}
			r.passed++
			if known {
				r.mended = append(r.mended, s.name())
			}
		case "skipped", "pending":
			if s.LeafNodeType == "It" && s.Failure.Message != "" {
				r.skipped[firstLine(s.Failure.Message)]++
			}
		default: // also what runs before and after all specs
			text := fmt.Sprintf("%s %s: %s", s.State, s.name(), firstLine(s.Failure.Message))
			if known {
				r.expected = append(r.expected, text+"\n    "+reason)
			} else {
				r.unexpected = append(r.unexpected, text)
			}
		}
	}
	return r
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}

// String is the table of results.
func (r results) String() string {
	var b strings.Builder
	skipped := r.count() - r.passed - len(r.expected) - len(r.unexpected)
	fmt.Fprintf(&b, "%d passed, %d failed, %d failed as expected, %d skipped themselves\n", r.passed, len(r.unexpected), len(r.expected), skipped)
	for _, list := range []struct {
		title string
		specs []string
	}{{"failed", r.unexpected}, {"failed as expected", r.expected}, {"passed, though node_e2e.txt has it", r.mended}} {
		slices.Sort(list.specs)
		for _, text := range list.specs {
			fmt.Fprintf(&b, "  %s: %s\n", list.title, text)
		}
	}
	reasons := make([]string, 0, len(r.skipped))
	for reason, n := range r.skipped {
		reasons = append(reasons, fmt.Sprintf("  skipped %d: %s\n", n, reason))
	}
	slices.Sort(reasons)
	return b.String() + strings.Join(reasons, "")
}

// expectedFailures reads node_e2e.txt: names of specs, with the reason in the comment above.
func expectedFailures(t *testing.T) map[string]string {
	t.Helper()
	f, err := os.Open(filepath.Join(node.Tree(), "tests/kubernetes/node_e2e.txt"))
	must(t, err)
	defer f.Close()
	expected := map[string]string{}
	reason := ""
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		comment, is := strings.CutPrefix(line, "#")
		switch {
		case line == "":
			reason = ""
		case is:
			reason = strings.TrimSpace(reason + " " + strings.TrimSpace(comment))
		case reason == "":
			t.Fatalf("node_e2e.txt: no reason for %q", line)
		case expected[line] != "":
			t.Fatalf("node_e2e.txt: %q is there twice", line)
		default:
			expected[line] = reason
		}
	}
	must(t, lines.Err())
	return expected
}

// TestNodeE2EResults: a failure is red unless it is expected, one of the suite's own nodes,
// too; what passes though it is expected to fail is said; a spec that the filter left out
// is not counted.
func TestNodeE2EResults(t *testing.T) {
	made := func(kind, state, name, message string) spec {
		s := spec{LeafNodeType: kind, State: state, LeafNodeText: name}
		s.Failure.Message = message
		return s
	}
	r := sortSpecs([]spec{
		made("It", "passed", "a", ""), made("It", "passed", "better", ""), made("It", "skipped", "filtered", ""),
		made("It", "skipped", "b", "not here\nat all"), made("It", "failed", "known", "no modules"),
		made("It", "timedout", "new", "late"), made("SynchronizedBeforeSuite", "passed", "", ""), made("SynchronizedAfterSuite", "panicked", "", "oh"),
	}, map[string]string{"known": "the machine's", "better": "the machine's", "filtered": "the machine's"})
	if r.passed != 2 || len(r.expected) != 1 || len(r.unexpected) != 2 || r.skipped["not here"] != 1 || r.count() != 6 || !slices.Equal(r.mended, []string{"better"}) {
		t.Errorf("%d specs: %s", r.count(), r)
	}
	for name := range expectedFailures(t) {
		if !strings.HasPrefix(name, "[") {
			t.Errorf("node_e2e.txt: %q is no name of a spec", name)
		}
	}
}
