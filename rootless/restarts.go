package rootless

import (
	"os"
	"path/filepath"
	"strconv"
)

// restartNames are the programs of the node that are started again when they have ended.
var restartNames = []string{"server", "uplink", "monitor"}

// restartFile counts the restarts of a program since the node was started, in
// the node's directory.
func restartFile(dir, name string) string { return filepath.Join(dir, "restarts-"+name) }

// countRestart is called by the only process that starts the program again. Best effort:
// it is a figure to look at.
func countRestart(dir, name string) {
	n := readRestarts(dir, name) + 1
	_ = os.WriteFile(restartFile(dir, name), strconv.AppendUint(nil, n, 10), 0o600)
}

func readRestarts(dir, name string) uint64 {
	n, _ := strconv.ParseUint(readNote(restartFile(dir, name)), 10, 64)
	return n
}

// Restarts returns how often the programs of the node had to be started again, because
// they had ended by themselves: server, uplink and monitor.
func (n *Node) Restarts() map[string]uint64 {
	out := map[string]uint64{}
	for _, name := range restartNames {
		out[name] = readRestarts(nodeDir(n.RunDir), name)
	}
	return out
}

// UplinkInterface is the uplink's interface in the node network namespace, whatever the
// uplink.
const UplinkInterface = "tap0"
