package rootless

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/subpod/subpod/pkg/proc"
)

// HostPID returns the PID that the caller sees for the process that has pid in the node,
// such as one of a container's status. proc.ErrGone when there is none any more.
func (n *Node) HostPID(pid int) (int, error) {
	child, err := readPIDs(strconv.Itoa(n.ChildPID))
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrNoNode, err)
	}
	level := len(child.inner) - 1
	if n.Inside || level == 0 { // the node has no PID namespace of its own
		return pid, nil
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, err
	}
	for _, dir := range dirs {
		p, err := readPIDs(filepath.Base(dir))
		// Another node's process may have the same number in that.
		if err == nil && len(p.inner) > level && p.inner[level] == pid && n.hasInside(p) {
			return p.inner[0], nil
		}
	}
	return 0, fmt.Errorf("process %d of the node: %w", pid, proc.ErrGone)
}

// hasInside reports whether a process descends from the node's first one, as all do that
// are in its PID namespace.
func (n *Node) hasInside(p processIDs) bool {
	for p.inner[0] != n.ChildPID {
		if p.parent == 0 {
			return false
		}
		var err error
		if p, err = readPIDs(strconv.Itoa(p.parent)); err != nil {
			return false
		}
	}
	return true
}

// processIDs are the numbers of a process: those in our PID namespace and in each further
// one that it is in, outermost first, and its parent's in ours.
type processIDs struct {
	inner  []int
	parent int
}

// readPIDs reads proc_pid_status(5).
func readPIDs(pid string) (p processIDs, err error) {
	text, err := os.ReadFile(filepath.Join("/proc", pid, "status"))
	if err != nil {
		return p, err
	}
	for line := range bytes.Lines(text) {
		name, value, _ := strings.Cut(string(line), ":")
		switch name {
		case "PPid":
			p.parent, err = strconv.Atoi(strings.TrimSpace(value))
		case "NSpid":
			for _, f := range strings.Fields(value) {
				id, convErr := strconv.Atoi(f)
				if convErr != nil {
					return p, fmt.Errorf("process %s: NSpid: %w", pid, convErr)
				}
				p.inner = append(p.inner, id)
			}
		}
		if err != nil {
			return p, fmt.Errorf("process %s: %s: %w", pid, name, err)
		}
	}
	if len(p.inner) == 0 {
		return p, fmt.Errorf("process %s: /proc shows no NSpid", pid)
	}
	return p, nil
}
