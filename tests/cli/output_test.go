package cli

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/subpod/subpod/tests/node"
	"github.com/subpod/subpod/tests/registry"
)

// TestOutputLost: a command whose output is lost says so, and fails.
func TestOutputLost(t *testing.T) {
	n := node.Start(t, node.Options{Config: bridge, Registries: registry.Conf(node.Registry(t))})
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	for _, args := range [][]string{
		{"--help"}, {"version"}, {"info"}, {"ps"}, {"images", "-o", "json"}, {"volume", "create", "lost"},
		{"run", "-d", "--name", "lost", "busybox", "sleep", "1000"},
	} {
		var stderr bytes.Buffer
		cmd := n.Command(t.Context(), node.Path(t, node.Subpod), args...)
		cmd.Stdout, cmd.Stderr = full, &stderr
		if err := cmd.Run(); err == nil || !strings.Contains(stderr.String(), "no space left on device") {
			t.Errorf("%s: %v, %s", strings.Join(args, " "), err, stderr.String())
		}
	}
	if out, err := n.Subpod("rm", "-f", "lost"); err != nil {
		t.Errorf("what was run is not there: %v: %s", err, out)
	}
}
