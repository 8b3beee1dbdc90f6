package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/subpod/subpod/tests/node"
)

// TestLogJSON: with log_format = "json" a program reads the whole log of a node that serves, also
// why a server could not.
func TestLogJSON(t *testing.T) {
	const format = "[daemon]\nlog_format = \"json\"\n"
	n := node.Start(t, node.Options{Config: format + bridge})
	n.WriteHome(".config/subpod/subpod.toml", format+bridge+"[runtime]\nconmon_path = \"/nonexistent/conmon\"\n")
	if out, err := n.Subpod("reload"); err == nil || !strings.Contains(err.Error()+out, "/nonexistent/conmon") {
		t.Fatalf("reload with a monitor that is not there: %v: %s", err, out)
	}
	node.Eventually(t, "the log says why, as an error", func() error { // it comes through a pipe
		found := false
		for line := range strings.Lines(n.Log()) {
			var entry struct{ Level, Error string }
			if err := json.Unmarshal([]byte(line), &entry); err != nil {
				return fmt.Errorf("%w: %q", err, line)
			}
			found = found || entry.Level == "ERROR" && strings.Contains(entry.Error, "find conmon")
		}
		if !found {
			return errors.New(n.Log())
		}
		return nil
	})
}
