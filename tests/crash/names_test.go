package crash

import (
	"errors"
	"strings"
	"testing"

	"github.com/subpod/subpod/tests/node"
)

// TestNamesWait: the questions of containers about names wait while the server is killed
// and started again, and while it is reloaded: none of them fails.
func TestNamesWait(t *testing.T) {
	n := node.Start(t, node.Options{Config: node.Bridge})
	subpod := n.MustSubpod
	subpod("pull", "-q", node.Busybox)
	subpod("network", "create", "--subnet", "10.91.4.0/24", "durable")
	subpod("run", "-d", "--name", "answered", "--network", "durable", node.Busybox, "sleep", "1000")
	subpod("run", "-d", "--name", "asking", "--network", "durable", node.Busybox, "sh", "-c",
		"while :; do nslookup answered.subpod.internal >/tmp/last 2>&1 || cat /tmp/last >> /tmp/failed; echo >> /tmp/all; done")
	count := func() string { return subpod("exec", "asking", "sh", "-c", "cat /tmp/all 2>/dev/null | wc -l") }
	more := func() {
		t.Helper()
		before := count()
		node.Eventually(t, "more names are looked up", func() error {
			if count() == before {
				return errors.New("none yet")
			}
			return nil
		})
	}
	more()
	for range 3 {
		n.KillServer()
		node.Eventually(t, "the next server serves", func() error { _, err := n.Subpod("pods"); return err })
		more()
		subpod("reload")
		more()
	}
	if out := subpod("exec", "asking", "sh", "-c", "cat /tmp/failed 2>/dev/null || true"); out != "" {
		t.Errorf("of %s questions some failed:\n%s", count(), out)
	}
	subpod("rm", "-f", "answered", "asking")
	if out := subpod("network", "ls", "-q"); !strings.Contains(out, "durable") {
		t.Errorf("networks: %q", out)
	}
	subpod("network", "rm", "durable")
}
