// Package play runs manifests as people have them (testdata), each from "subpod play" to
// "subpod play --down", and looks that nothing is left of it.
package play

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/subpod/subpod/tests/node"
)

func TestMain(m *testing.M) { node.Main(m) }

// expectation is one comment of a manifest: what is to be seen when it is played.
//
//	# wait: CODE               it ends by itself, with this exit code; others are in the background
//	# stdout: TEXT             of the containers, with "wait"
//	# stderr: TEXT             of the command
//	# get: PORT TEXT           an HTTP server on this port of the host answers with the text
//	# exec: NAME CMD => TEXT   a command in a container prints the text
//	# client: CMD => TEXT      a command in a pod of its own prints the text
//	# after-down: CMD => TEXT  a command in a pod prints the text, with the first volume in /data
//	# volume: NAME             is there after "--down"
//	# short                    is in the sample of "go test -short"
type expectation struct{ key, value string }

func expectations(t *testing.T, file string) []expectation {
	t.Helper()
	if strings.HasSuffix(file, ".json") { // has no comments
		file = strings.TrimSuffix(file, "json") + "want"
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var out []expectation
	for line := range strings.Lines(string(text)) {
		comment, ok := strings.CutPrefix(strings.TrimPrefix(strings.TrimSpace(line), "\ufeff"), "# ")
		key, value, _ := strings.Cut(comment, ":")
		switch {
		case !ok:
		case comment == "short":
			out = append(out, expectation{key: "short"})
		case strings.Contains(" wait stdout stderr get exec client after-down volume ", " "+key+" "):
			out = append(out, expectation{key, strings.TrimSpace(value)})
		}
	}
	return out
}

func values(all []expectation, key string) []string {
	var out []string
	for _, e := range all {
		if e.key == key {
			out = append(out, e.value)
		}
	}
	return out
}

// least is how many manifests there have to be.
const least = 30

// TestManifests plays every manifest; with -short a sample, of the kinds that have no test
// of their own among the scripts of tests/cli.
func TestManifests(t *testing.T) {
	files, err := filepath.Glob("testdata/*.[yj][as][mo][ln]*")
	if err != nil || len(files) < least {
		t.Fatalf("%d manifests, %v; want at least %d", len(files), err, least)
	}
	n := node.Start(t, node.Options{Config: node.Bridge})
	for _, image := range []string{"busybox", "registry.k8s.io/e2e-test-images/nginx:1.14-2", "registry.k8s.io/e2e-test-images/busybox:1.29-2"} {
		n.MustSubpod("pull", "-q", image)
	}
	n.MustSubpod("run", "--rm", "busybox", "true") // warms up
	before := n.Look()
	for _, file := range files {
		want := expectations(t, file)
		if testing.Short() && len(values(want, "short")) == 0 {
			continue
		}
		t.Run(filepath.Base(file), func(t *testing.T) {
			n := n.For(t)
			play(t, n, file, want)
			n.NothingLeft(before)
		})
	}
}

func play(t *testing.T, n *node.Node, file string, want []expectation) {
	t.Helper()
	if len(want) == 0 {
		t.Fatal("nothing is expected of it")
	}
	volumes := values(want, "volume")
	t.Cleanup(func() {
		if t.Failed() { // the next ones begin with nothing
			_, _ = n.Subpod("play", "--down", file)
		}
		for _, v := range volumes {
			n.MustSubpod("volume", "rm", v)
		}
		noFiles(t, n)
	})
	code, args := 0, []string{"play", "-d", file}
	if wait := values(want, "wait"); len(wait) > 0 {
		code, _ = strconv.Atoi(wait[0])
		args = []string{"play", "--logs", file}
	}
	stdout, stderr, got := run(t, n, args...)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("play:\n%s%s", stdout, stderr)
		}
	})
	if got != code {
		t.Fatalf("play: exit code %d, want %d\n%s%s", got, code, stdout, stderr)
	}
	for _, e := range want {
		check(t, n, e, stdout, stderr)
	}
	if second, _, code := run(t, n, "play", "-d", file); code == 0 {
		t.Errorf("a second play of the same pods succeeds: %s", second)
	}
	n.MustSubpod("play", "--down", file)
	n.MustSubpod("play", "--down", file) // once more is the same
	// Those of "run --rm" go a moment after their command has ended.
	node.Eventually(t, "no pod is left", func() error {
		pods, err := n.Subpod("pods", "-q")
		if err == nil && pods != "" {
			err = fmt.Errorf("pods are left: %s", pods)
		}
		return err
	})
	for _, v := range volumes {
		n.MustSubpod("volume", "exists", v)
	}
	for _, e := range values(want, "after-down") {
		cmd, text, _ := strings.Cut(e, " => ")
		contains(t, e, n.MustSubpod("run", "--rm", "-v", volumes[0]+":/data", "busybox", "sh", "-c", cmd), text)
	}
}

func check(t *testing.T, n *node.Node, e expectation, stdout, stderr string) {
	t.Helper()
	cmd, text, _ := strings.Cut(e.value, " => ")
	switch e.key {
	case "stdout":
		contains(t, "stdout", stdout, e.value)
	case "stderr":
		contains(t, "stderr", stderr, e.value)
	case "get":
		port, body, _ := strings.Cut(e.value, " ")
		node.Eventually(t, e.value, func() error { return get(port, body) })
	case "client":
		says(t, n, text, "run", "--rm", "busybox", "sh", "-c", cmd)
	case "exec":
		name, cmd, _ := strings.Cut(cmd, " ")
		says(t, n, text, "exec", name, "sh", "-c", cmd)
	}
}

// says waits until a command has the text in its output: what it asks may only begin to
// listen, or to write.
func says(t *testing.T, n *node.Node, want string, args ...string) {
	t.Helper()
	node.Eventually(t, strings.Join(args, " "), func() error {
		out, err := n.Subpod(args...)
		if err == nil && !strings.Contains(out, want) {
			err = fmt.Errorf("%q; want %q in it", out, want)
		}
		return err
	})
}

func contains(t *testing.T, what, got, want string) {
	t.Helper()
	if !strings.Contains(got, want) {
		t.Errorf("%s: %q; want %q in it", what, got, want)
	}
}

// get asks a port of the host.
func get(port, want string) error {
	resp, err := http.Get("http://127.0.0.1:" + port + "/")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && !strings.Contains(string(body), want) {
		err = fmt.Errorf("the answer is %q", body)
	}
	return err
}

// run runs subpod and returns what it has printed, and its exit code.
func run(t *testing.T, n *node.Node, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := n.Command(t.Context(), node.Path(t, node.Subpod), args...)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// noFiles checks that no pod has left files in the data directory.
func noFiles(t *testing.T, n *node.Node) {
	t.Helper()
	node.Eventually(t, "no files are left", func() (err error) {
		for _, dir := range []string{"play", "volumes", "logs"} {
			left, readErr := os.ReadDir(filepath.Join(n.DataDir, dir))
			if readErr != nil && !errors.Is(readErr, os.ErrNotExist) {
				err = errors.Join(err, readErr)
			}
			for _, e := range left {
				if dir != "logs" || e.Name() != "pods" {
					err = errors.Join(err, fmt.Errorf("left in %s: %s", dir, e.Name()))
				}
			}
		}
		return err
	})
}
