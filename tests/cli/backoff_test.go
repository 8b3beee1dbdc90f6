package cli

import (
	"strings"
	"testing"

	"github.com/subpod/subpod/tests/node"
	"github.com/subpod/subpod/tests/registry"
)

// TestPausedRestart: a pod in the pause before a restart is not what "rm --all" and
// "system prune" remove, unless they are to remove what runs.
func TestPausedRestart(t *testing.T) {
	n := node.Start(t, node.Options{Config: bridge, Registries: registry.Conf(node.Registry(t))})
	must := func(args ...string) string {
		t.Helper()
		out, err := n.Subpod(args...)
		if err != nil {
			t.Fatalf("%v: %v", args, err)
		}
		return out
	}
	must("run", "-d", "--name", "again", "--restart", "always", "busybox", "false")
	must("run", "-d", "--name", "done", "busybox", "true")
	must("create", "--name", "later", "busybox", "true")
	must("wait", "done")
	for range 5 { // runs of it come between
		must("rm", "--all")
		must("system", "prune", "--force")
	}
	if pods := must("pods"); !strings.Contains(pods, "again") || strings.Contains(pods, "done") || strings.Contains(pods, "later") {
		t.Errorf("left:\n%s", pods)
	}
	must("rm", "--all", "--force")
	if pods := must("pods", "-q"); pods != "" {
		t.Errorf("left after --force: %s", pods)
	}
}
