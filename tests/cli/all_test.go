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
	if _, err := n.Subpod("volume", "rm", "--all"); err == nil {
		t.Error("volumes of containers are removed")
	}
	must("rm", "--all")
	states("")
	must("volume", "rm", "--all")
	if left := must("volume", "ls", "-q"); left != "" {
		t.Errorf("volumes left: %s", left)
	}
	must("rmi", "--all")
	if left := must("images", "-q"); left != "" {
		t.Errorf("images left: %s", left)
	}
}
