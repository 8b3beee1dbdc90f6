package attack

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/subpod/subpod/tests/node"
)

// TestNames: a container of one network reaches no other: not its pods, not its names,
// by its own name server or by that of the other network, whatever addresses it gives
// itself.
func TestNames(t *testing.T) {
	n := node.Start(t, node.Options{Config: node.Bridge})
	subpod := n.MustSubpod
	subpod("pull", "-q", node.Busybox)
	subpod("network", "create", "--subnet", "10.91.1.0/24", "ours")
	subpod("network", "create", "--subnet", "10.91.2.0/24", "theirs")
	subpod("network", "create", "--subnet", "10.91.3.0/24", "--internal", "inside")
	serve := "echo there > /tmp/index.html; exec httpd -f -p 8080 -h /tmp"
	for name, network := range map[string]string{"victim": "ours", "common": "pod", "hidden": "inside"} {
		subpod("run", "-d", "--name", name, "--network", network, node.Busybox, "sh", "-c", serve)
	}
	subpod("run", "-d", "--name", "attacker", "--network", "theirs", "--cap-add", "NET_ADMIN", "--cap-add", "NET_RAW", node.Busybox, "sleep", "1000")
	subpod("run", "-d", "--name", "bystander", "--cap-add", "NET_ADMIN", node.Busybox, "sleep", "1000")
	address := func(name string) string {
		return subpod("exec", name, "sh", "-c", "ip -4 -o addr show eth0 | sed 's/.* inet \\([^/]*\\).*/\\1/'")
	}
	addresses := map[string]string{"victim": address("victim"), "common": address("common"), "hidden": address("hidden")}

	try := func(from, what, script string) {
		t.Helper()
		out, err := n.Subpod("exec", from, "sh", "-c", "timeout 3 sh -c '"+script+"'")
		if err == nil {
			t.Errorf("%s: %s\n%s", from, what, out)
		}
	}
	fetch := func(addr string) string { return fmt.Sprintf("wget -T 1 -qO- http://%s:8080/", addr) }
	lookup := func(name, server string) string { return fmt.Sprintf("nslookup %s.subpod.internal %s", name, server) }

	// It works where it is to work: else all that follows would pass for nothing.
	if out, err := n.Subpod("run", "--rm", "--network", "ours", node.Busybox, "sh", "-c", fetch("victim")); err != nil || !strings.Contains(out, "there") {
		t.Fatalf("the victim's own network does not reach it: %v\n%s", err, out)
	}
	attack := func(when string) {
		t.Helper()
		var all sync.WaitGroup // each waits for an answer that never comes
		for _, a := range []struct{ from, what, script string }{
			{"attacker", "it reaches another network", fetch(addresses["victim"])},
			{"attacker", "it reaches the default network", fetch(addresses["common"])},
			{"attacker", "it reaches an internal network", fetch(addresses["hidden"])},
			{"bystander", "it reaches a named network", fetch(addresses["victim"])},
			{"attacker", "it learns a name of another network", lookup("victim", "")},
			{"attacker", "it learns a name from the other network's server", lookup("victim", "10.91.1.1")},
			{"attacker", "it learns a name of the default network", lookup("common", "10.88.0.1")},
			{"bystander", "it learns a name of a named network", lookup("victim", "10.91.1.1")},
		} {
			all.Go(func() { try(a.from, when+a.what, a.script) })
		}
		all.Wait()
	}
	attack("")
	try("hidden", "a pod of an internal network reaches the default network", fetch(addresses["common"]))
	try("hidden", "a pod of an internal network has names outside looked up", "nslookup example.org")

	// As one of the other network's, by an address of it on its own link.
	for _, from := range []string{"attacker", "bystander"} {
		subpod("exec", from, "ip", "addr", "add", "10.91.1.77/24", "dev", "eth0")
	}
	attack("with an address of the other network, ")

	// After a crash all of it is as before.
	n.KillServer()
	node.Eventually(t, "the next server serves", func() error { _, err := n.Subpod("pods"); return err })
	attack("after a crash, ")
	if out, err := n.Subpod("run", "--rm", "--network", "ours", node.Busybox, "sh", "-c", fetch("victim")); err != nil || !strings.Contains(out, "there") {
		t.Errorf("after a crash the victim's own network does not reach it: %v\n%s", err, out)
	}
	subpod("rm", "-f", "victim", "common", "hidden", "attacker", "bystander")
	subpod("network", "rm", "ours", "theirs", "inside")
}
