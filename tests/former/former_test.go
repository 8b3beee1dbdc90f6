package former

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/subpod/subpod/tests/node"
)

func TestMain(m *testing.M) { node.Main(m) }

// TestFormerNodes: a daemon of this version takes over what the node of a former one has
// left at a power cut: pods, volumes, networks. All of it is shown, and can be removed. (Its
// containers' processes survive where the node does: tests/vm, TestPackageUpgrade.)
func TestFormerNodes(t *testing.T) {
	for _, version := range Versions(t) {
		t.Run(version, func(t *testing.T) {
			n := node.Prepare(t, node.Options{Config: node.Bridge})
			Unpack(t, version, n.DataDir)
			// A volume's files are in no format of subpod's.
			if err := os.MkdirAll(filepath.Join(n.DataDir, "volumes", "kept"), 0o700); err != nil {
				t.Fatal(err)
			}
			n.Run()
			run := func(args ...string) string {
				t.Helper()
				out, err := n.Subpod(args...)
				if err != nil {
					t.Errorf("subpod %s: %v\n%s", strings.Join(args, " "), err, out)
				}
				return out
			}
			// In a database, and in the journal alone.
			shown := map[string]string{
				"web": "Exited", "ended": "Exited (7)", "plain": "Exited", "stopped": "Exited (137)", "last": "Exited",
				"job/first": "Exited (0)", "job/main": "Exited", "job/side": "Exited",
			}
			ps := run("ps", "-a")
			if strings.Contains(ps, "failing") { // restarts and networks came later
				shown["failing"], shown["healthy"], shown["db"] = "Exited (3)", "", "Exited"
				node.Contains(t, "networks", run("network", "ls"), "back")
				node.Contains(t, "volumes", run("volume", "ls"), "kept")
			}
			for name, status := range shown {
				found := false
				for line := range strings.Lines(ps) {
					found = found || strings.HasSuffix(strings.TrimSpace(line), " "+name) && strings.Contains(line, status)
				}
				if !found {
					t.Errorf("no %s, %q, in:\n%s", name, status, ps)
				}
			}
			if out := run("inspect", "web"); !json.Valid([]byte(out)) || !strings.Contains(out, `"HostPort": "18080"`) {
				t.Errorf("inspect web: %s", out)
			}
			pods := strings.Fields(run("pods", "-q"))
			run(append([]string{"rm", "-f"}, pods...)...)
			if left := strings.TrimSpace(run("ps", "-aq") + run("pods", "-q")); left != "" {
				t.Errorf("after rm: %s", left)
			}
		})
	}
}
