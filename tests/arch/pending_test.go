package arch

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

// pending lists where a rule does not hold yet. An entry is what the rule says it of:
// a directory, or a name in one. Nothing is to be added here: a list only gets shorter,
// and an entry that is no longer needed fails the test.
type pending struct {
	rule    string
	entries []string
	seen    map[string]int
}

// tableIsExact makes permissions of the table of imports that nobody uses an error. It
// becomes true, and then goes, when the packages have moved.
const tableIsExact = false

var (
	pendingPackages = pending{rule: "every package has a row", entries: []string{
		"pkg/cli",
		"pkg/doctor",
		"pkg/kube",
		"pkg/labels",
		"pkg/logs",
		"pkg/play",
		"pkg/rate",
		"pkg/terminal",
	}}
	pendingRows = pending{rule: "every row is a package", entries: []string{
		"cmd/internal/cli",
		"cmd/internal/doctor",
		"cmd/internal/kube",
		"cmd/internal/logs",
		"cmd/internal/play",
		"pkg/api",
		"pkg/hostport",
		"pkg/idmap",
		"pkg/pod/container",
		"pkg/pod/sandbox",
		"pkg/quantity",
		"pkg/rpc",
		"pkg/stdio",
	}}
	pendingImports = pending{rule: "imports follow the table", entries: []string{
		"cmd/subpod",
		"cmd/subpod-server",
		"pkg/client",
		"pkg/config",
		"pkg/cri",
		"pkg/pod",
		"pkg/stream",
	}}
	pendingMethods = pending{rule: "at most 25 methods a type", entries: []string{
		"netns/bridge.Bridge",
		"netns/cni.Network",
		"pkg/cri.Service",
		"pkg/oci.Executor",
		"pkg/pod.Runtime",
		"storage.Store",
	}}
	pendingContexts = pending{rule: "no ignored context", entries: []string{
		"netns/bridge",
		"pkg/oci",
		"storage",
	}}
	pendingComments = pending{rule: "comments begin with the name", entries: []string{
		"pkg/client",
		"pkg/oci",
		"rootless",
	}}
	pendingTimeouts = pending{rule: "the documentation has the timeouts"}
)

// report fails the test, unless the entry is pending.
func (p *pending) report(t *testing.T, entry, format string, args ...any) {
	t.Helper()
	if slices.Contains(p.entries, entry) {
		if p.seen == nil {
			p.seen = map[string]int{}
		}
		p.seen[entry]++
		return
	}
	t.Errorf(format, args...)
}

// done fails the test for entries that are no longer needed.
func (p *pending) done(t *testing.T) {
	t.Helper()
	for _, entry := range p.entries {
		if p.seen[entry] == 0 {
			t.Errorf("pending_test.go, %q: %s is done: delete the entry", p.rule, entry)
		}
	}
	if left := slices.Sorted(maps.Keys(p.seen)); len(left) > 0 {
		t.Logf("pending, %s: %s", p.rule, strings.Join(left, ", "))
	}
}
