package rootless

import (
	"fmt"

	"github.com/subpod/subpod/pkg/proc"
)

// HostPID returns the PID that the caller sees for the process that has pid in the node,
// such as one of a container's status. proc.ErrGone when there is none any more.
func (n *Node) HostPID(pid int) (int, error) {
	child, err := proc.NamespacePIDs(n.ChildPID)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrNoNode, err)
	}
	level := len(child) - 1
	if n.Inside || level == 0 { // the node has no PID namespace of its own
		return pid, nil
	}
	all, err := proc.PIDs()
	if err != nil {
		return 0, err
	}
	for _, p := range all {
		inner, err := proc.NamespacePIDs(p)
		// Another node's process may have the same number in that.
		if err == nil && len(inner) > level && inner[level] == pid && n.hasInside(p) {
			return p, nil
		}
	}
	return 0, fmt.Errorf("process %d of the node: %w", pid, proc.ErrGone)
}

// hasInside reports whether a process descends from the node's first one, as all do that
// are in its PID namespace.
func (n *Node) hasInside(pid int) bool {
	for pid != n.ChildPID {
		st, err := proc.ReadStat(pid)
		if err != nil || st.PPID == 0 {
			return false
		}
		pid = st.PPID
	}
	return true
}
