// Package foreign runs a test suite that others have written for another CRI runtime
// against the daemon: containerd's CRI integration tests, as its module has them
// (pinned in suite/go.mod). They run inside the node, as the kubelet would.
//
// Two committed lists have a reason for each entry. not-applicable.txt names what asks
// for containerd itself and is not run. known-failures.txt names what fails; a test
// that fails and is not in it fails this one, and so does one that is in it and passes.
//
//	go test ./tests/foreign -focus TestContainerEvents
package foreign

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/tests/node"
)

const suite = ".cache/bin/containerd-cri.test" // made by make test-foreign

func TestMain(m *testing.M) { node.Main(m) }

var (
	focus  = flag.String("focus", "", "run only the tests whose name matches, and compare only these")
	driver = flag.String("driver", "fuse-overlayfs", "storage driver: fuse-overlayfs or native")
)

func TestContainerd(t *testing.T) {
	n := node.Start(t, node.Options{Config: fmt.Sprintf("[storage]\ndriver = %q\n", *driver)})
	memory := memoryDelegated(t, n)
	known, err := readList("known-failures.txt", memory)
	if err != nil {
		t.Fatal(err)
	}
	skip, err := readList("not-applicable.txt", memory)
	if err != nil {
		t.Fatal(err)
	}
	bin := prepare(t, n)
	names := tests(t, n, bin)
	run := []string{"-test.v", "-test.timeout=20m", "-test.skip=" + skip.pattern()}
	if *focus != "" {
		run = append(run, "-test.run="+*focus)
		names = slices.DeleteFunc(names, func(name string) bool { return !regexp.MustCompile(*focus).MatchString(name) })
		known, skip = known.only(*focus), skip.only(*focus)
	}
	out, err := enter(n, append(command(n, bin), run...)...)
	results := parse(out)
	if len(results) == 0 {
		t.Fatalf("no test has run: %v\n%s", err, out)
	}
	for _, problem := range compare(names, results, known, skip) {
		t.Error(problem)
	}
	if t.Failed() {
		keep(t, out)
	}
	for _, id := range strings.Fields(n.Crictl("pods", "-q")) {
		n.TryCrictl("rmp", "-f", id)
	}
	fmt.Printf("containerd's CRI integration tests: %s; %d do not apply\n", results.leaves().count(), len(skip))
}

// memoryDelegated reports whether the node limits and measures memory.
func memoryDelegated(t *testing.T, n *node.Node) bool {
	t.Helper()
	status, err := n.CRI().Status(t.Context(), &runtimeapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range status.GetStatus().GetConditions() {
		if c.Type == "ResourceLimits" {
			return c.Status && !strings.Contains(c.Message, "memory")
		}
	}
	return false
}

// prepare gives the tests what they look for in the node, and returns the directory of
// the programs that they call: the root of a containerd, to see whether its file system
// can be ID-mapped, and a runc, to see whether it can do that. crun is asked by subpod.
func prepare(t *testing.T, n *node.Node) string {
	t.Helper()
	n.Enter("mount", "-t", "tmpfs", "tmpfs", "/mnt")
	n.Enter("mkdir", "-m", "0755", "/mnt/tmp", "/mnt/bin")
	n.Enter("mount", "-t", "tmpfs", "tmpfs", "/var/lib")
	n.Enter("mkdir", "-m", "0755", "/var/lib/containerd-test")
	features := `{"linux": {"mountExtensions": {"idmap": {"enabled": true}}}}`
	script := filepath.Join(n.Dir, "runc")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho '"+features+"'\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	n.Enter("cp", script, "/mnt/bin/runc")
	return "/mnt"
}

// command is how the suite is started in the node. Its directories for logs and volumes
// are on a file system that can be ID-mapped.
func command(n *node.Node, dir string) []string {
	return []string{
		"env", "-C", "/tmp", "TMPDIR=" + dir + "/tmp", "PATH=" + dir + "/bin:" + os.Getenv("PATH"),
		filepath.Join(node.Tree(), suite), "-cri-endpoint=unix://" + n.Socket, "-runtime-handler=crun",
	}
}

// tests returns the names of all tests of the suite.
func tests(t *testing.T, n *node.Node, dir string) []string {
	t.Helper()
	out, err := enter(n, append(command(n, dir), "-test.list=.")...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	names := regexp.MustCompile(`(?m)^Test\w+$`).FindAllString(out, -1)
	if len(names) == 0 {
		t.Fatalf("the suite has no tests:\n%s", out)
	}
	return names
}

func enter(n *node.Node, argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	cmd := n.Command(ctx, filepath.Join(node.Tree(), node.Subpod), append([]string{"nsenter", "--"}, argv...)...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (l list) only(pattern string) list {
	matches := regexp.MustCompile(pattern)
	some := list{}
	for name, reason := range l {
		if top, _, _ := strings.Cut(name, "/"); matches.MatchString(top) {
			some[name] = reason
		}
	}
	return some
}

// keep writes the output where it can be read after the run.
func keep(t *testing.T, out string) {
	dir := os.Getenv("SUBPOD_KEEP_DIR")
	if dir == "" {
		lines := strings.Split(strings.TrimSpace(out), "\n")
		t.Logf("the end of the output (SUBPOD_KEEP_DIR=DIR keeps all of it):\n%s", strings.Join(lines[max(0, len(lines)-80):], "\n"))
		return
	}
	if err := os.WriteFile(filepath.Join(dir, "foreign.log"), []byte(out), 0o644); err != nil {
		t.Log(err)
	}
}
