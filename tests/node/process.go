package node

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/subpod/subpod/tests/leak"
)

// Child returns the PID of a process below the daemon whose program has the name; 0
// when there is none.
func (n *Node) Child(name string) int {
	for _, p := range leak.Descendants(n.PID()) {
		// The kernel keeps 15 bytes of a name. A process that has ended has no arguments.
		if p.Name == name[:min(len(name), 15)] {
			if args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.PID)); err == nil && len(args) > 0 {
				return p.PID
			}
		}
	}
	return 0
}

// Server returns the PID of the CRI server; it waits for one.
func (n *Node) Server() int {
	n.t.Helper()
	return n.AwaitChild("subpod-server")
}

// AwaitChild is Child, but waits for the process: a container's is the OCI runtime's
// still when its start is answered.
func (n *Node) AwaitChild(name string) int {
	n.t.Helper()
	var pid int
	Eventually(n.t, "there is a process "+name, func() error {
		if pid = n.Child(name); pid == 0 {
			return errors.New("no process " + name)
		}
		return nil
	})
	return pid
}

// KillServer kills the server, if there is one, whatever it does. The supervisor
// starts another one.
func (n *Node) KillServer() {
	if pid := n.Child("subpod-server"); pid != 0 {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}
