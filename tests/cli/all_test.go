package cli

import (
	"strings"
	"testing"

	"github.com/subpod/subpod/tests/node"
	"github.com/subpod/subpod/tests/registry"
)

// TestAll: flags that mean everything there is, which no script on the shared daemon can use.
func TestAll(t *testing.T) {
	n := node.Start(t, node.Options{Config: bridge, Registries: registry.Conf(node.Registry(t))})
	must := func(args ...string) string {
		t.Helper()
		out, err := n.Subpod(args...)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	states := func(want string) {
		t.Helper()
		if got := strings.Join(strings.Fields(must("ps", "-a", "--sort", "names", "--format", "{{.Names}}={{.State}}")), " "); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	for _, name := range []string{"a", "b"} {
		must("run", "-d", "-q", "--name", name, "-v", "v"+name+":/v", "busybox", "sleep", "1000")
	}
	must("create", "-q", "--name", "c", "busybox", "sleep", "1000")
	must("kill", "--all")
	must("wait", "a", "b")
	states("a=exited b=exited c=created")
	must("start", "a")
	before := must("inspect", "-f", "{{.RestartCount}}", "a")
	must("restart", "--running", "-t", "0")
	if after := must("inspect", "-f", "{{.RestartCount}}", "a"); after == before {
		t.Errorf("a was not restarted: %s", after)
	}
	states("a=running b=exited c=created")
	must("restart", "--all", "-t", "0")
	states("a=running b=running c=running")
	must("stop", "--all", "-t", "0")
	states("a=exited b=exited c=exited")
	must("start", "--all")
	states("a=running b=running c=running")
	must("stop", "--all", "-t", "0")
	testLatest(t, must, states)
	if _, err := n.Subpod("volume", "rm", "--all"); err == nil {
		t.Error("volumes of containers are removed")
	}
	must("pod", "prune", "-f")
	states("")
	t.Setenv("ALL_SECRET", "x")
	must("secret", "create", "--env", "s", "ALL_SECRET")
	must("secret", "rm", "--all")
	if left := must("secret", "ls", "-q"); left != "" {
		t.Errorf("secrets left: %s", left)
	}
	must("create", "-q", "--name", "d", "busybox", "true")
	must("rm", "--all")
	states("")
	must("volume", "create", "unused")
	must("run", "-d", "-q", "--name", "e", "-v", "va:/v", "busybox", "sleep", "1000")
	must("system", "prune", "-f", "--volumes")
	if left := must("volume", "ls", "-q"); left != "va" {
		t.Errorf("volumes after system prune --volumes: %s", left)
	}
	must("rm", "-f", "-l")
	must("volume", "rm", "--all")
	if left := must("volume", "ls", "-q"); left != "" {
		t.Errorf("volumes left: %s", left)
	}
	must("image", "prune", "-f")
	if left := must("images", "-q"); left == "" {
		t.Error("image prune removes images with a name")
	}
	must("image", "prune", "-a", "--force")
	if left := must("images", "-q"); left != "" {
		t.Errorf("images after image prune -a: %s", left)
	}
	must("pull", "-q", "busybox")
	must("rmi", "--all")
	if left := must("images", "-q"); left != "" {
		t.Errorf("images left: %s", left)
	}
}

// testLatest: -l is the container that was made last: c, which is stopped as are a and b.
func testLatest(t *testing.T, must func(...string) string, states func(string)) {
	t.Helper()
	must("start", "-l")
	states("a=exited b=exited c=running")
	for want, args := range map[string][]string{
		"c":        {"inspect", "-l", "-f", "{{.Name}}"},
		"from -l":  {"exec", "-l", "echo", "from -l"},
		"A /tmp/x": {"diff", "--latest"},
		"C":        {"top", "-l", "pid"},
	} {
		if args[0] == "diff" {
			must("exec", "--latest", "touch", "/tmp/x")
		}
		got := must(args...)
		if args[0] == "top" {
			got, want = strings.Join(strings.Fields(got), " "), "PID 1"
		}
		if !strings.Contains(got, want) {
			t.Errorf("%v: %q, want %q", args, got, want)
		}
	}
	if got := must("stats", "--no-stream", "--latest", "--format", "{{.Name}}"); got != "c" {
		t.Errorf("stats -l: %s", got)
	}
	must("update", "--latest", "--restart", "always")
	if got := must("inspect", "-l", "-f", "{{.HostConfig.RestartPolicy.Name}}"); got != "always" {
		t.Errorf("update -l: %s", got)
	}
	must("restart", "-l", "-t", "0")
	must("port", "-l")
	must("stop", "--latest", "-t", "0")
	states("a=exited b=exited c=exited")
	must("start", "-l")
	must("kill", "-l")
	if got := must("wait", "--latest"); got != "137" {
		t.Errorf("wait -l: %s", got)
	}
	must("run", "-q", "--name", "d", "busybox", "echo", "the log of d")
	if got := must("logs", "-l"); got != "the log of d" {
		t.Errorf("logs -l: %s", got)
	}
	must("rm", "-l")
	states("a=exited b=exited c=exited")
}
