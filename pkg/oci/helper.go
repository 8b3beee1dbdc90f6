package oci

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/subpod/subpod/pkg/proc"
)

// helper is a process of an OCI runtime that works on a container: the runtime,
// what it has forked, or the shell that calls it. A container's init is one too,
// until it executes the container's command.
type helper struct {
	proc.ID
	container string
	op        string // "create", "start", …; "init" is runc's part in the container
}

// runtimeOps are the commands that a runtime is called with.
var runtimeOps = []string{"create", "start", "exec", "update", "delete"}

// helperOf recognises a helper by its command line, which has the Executor's state
// directory and ends with the container's ID, or, inside of the container, by
// runc's environment. A process of a container could pretend to be one; that does
// no harm but to itself, since the ID that it brings is one: it becomes a path below the
// state directory.
func (rt *runtime) helperOf(pid int, args []string) (helper, bool) {
	if len(args) == 0 {
		return helper{}, false
	}
	h := helper{container: args[len(args)-1]}
	if i := slices.Index(args, "--root="+rt.root); i >= 0 {
		j := slices.IndexFunc(args[i:], func(a string) bool { return slices.Contains(runtimeOps, a) })
		if j < 0 {
			return helper{}, false
		}
		h.op = args[i+j]
	} else if len(args) == 2 && args[1] == "init" {
		_, state, ok := bytes.Cut(append([]byte{0}, ownText(pid, "environ")...), []byte("\x00_LIBCONTAINER_STATEDIR="+rt.root+"/"))
		if !ok {
			return helper{}, false
		}
		id, _, _ := bytes.Cut(state, []byte{0})
		h.container, h.op = filepath.Base(string(id)), "init"
	} else {
		return helper{}, false
	}
	if !validID().MatchString(h.container) {
		return helper{}, false
	}
	var err error
	h.ID, err = proc.Identify(pid)
	return h, err == nil && h.Alive()
}

// maxInside bounds the helpers in containers that are looked at at a time. What is there
// between the making of a container's first process and its command is little, and a
// container may have thousands of processes that pretend to be one, each of another
// container, for all of which the node's processes would be looked at anew. Not counted are
// those of a container that shares the node's PID namespace, where somebody has asked for it.
const maxInside = 16

// helpers returns the runtime's processes that there are.
func (rt *runtime) helpers(t commandLines) map[int]helper {
	found, inside := map[int]helper{}, 0
	for pid, args := range t.args {
		h, ok := rt.helperOf(pid, args)
		if !ok || h.StartTime != t.processTable[pid].StartTime {
			continue
		}
		// A runtime may have been started in a mount namespace of its own.
		if !shares(pid, "mnt") && !shares(pid, "pid") {
			if inside == maxInside {
				continue
			}
			inside++
		}
		found[pid] = h
	}
	return found
}

// shares reports whether a process is in our namespace of a kind, by its name in proc(5).
func shares(pid int, kind string) bool {
	ours, err := os.Readlink("/proc/self/ns/" + kind)
	if err != nil {
		return false
	}
	theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
	return err == nil && theirs == ours
}

// abandonedGrace is how long a helper must have been abandoned before it is
// killed: one that is about to end is let go.
const abandonedGrace = 100 * time.Millisecond

// killAbandoned ends the helpers that nobody waits for any more when a server
// starts. It looks at the processes in t first, and again at those that there are.
func (rt *runtime) killAbandoned(t commandLines, log *slog.Logger, live func(id string) bool) {
	before := rt.abandoned(t, live)
	if len(before) == 0 {
		return
	}
	time.Sleep(abandonedGrace)
	for _, h := range rt.abandoned(readCommandLines(), live) {
		// It may have forked meanwhile.
		same := func(b helper) bool { return b.container == h.container && b.op == h.op }
		if slices.ContainsFunc(before, same) {
			log.Info("killing an OCI runtime that an earlier server called", "pid", h.PID, "handler", rt.name, "operation", h.op, "container", h.container)
			killTree(h.ID)
		}
	}
}

// abandoned returns all helpers, but the init of a live container that was created,
// and a runtime below which an exec's command runs.
func (rt *runtime) abandoned(t commandLines, live func(id string) bool) []helper {
	helpers := rt.helpers(t)
	var found []helper
	for pid, h := range helpers {
		switch h.op {
		case "init":
			continue // ends with the runtime that waits for it, or is a container's
		case "create":
			if live(h.container) && rt.containerFromState(h.container).Init == h.ID && t.isAlone(pid, helpers) {
				continue
			}
		case "exec":
			if t.commandBelow(pid, helpers) {
				continue
			}
		}
		found = append(found, h)
	}
	// With the topmost end those below it. The other way round it could tell of their
	// end as if that were the command's.
	return slices.DeleteFunc(slices.Clone(found), func(h helper) bool {
		return slices.ContainsFunc(found, func(above helper) bool { return above.PID != h.PID && t.below(h.PID, above.PID) })
	})
}

// isAlone reports whether no other helper is the parent of a process.
func (t processTable) isAlone(pid int, helpers map[int]helper) bool {
	_, ok := helpers[t[pid].PPID]
	return !ok
}

// commandBelow reports whether a process that is no helper runs below a helper.
func (t processTable) commandBelow(root int, helpers map[int]helper) bool {
	for pid, st := range t {
		if _, ok := helpers[pid]; !ok && !st.Ended() && t.below(pid, root) {
			return true
		}
	}
	return false
}

// endStopped ends the execs that an earlier server was ending when it ended itself. It
// had stopped the runtime or conmon above the command (see killTree), and nobody lets
// that go on: the command would stay, or, killed, would not be collected, and a PID
// namespace does not end before all its processes are.
func (e *Executor) endStopped(t commandLines) {
	for pid, st := range t.processTable {
		ours := func(arg string) bool { return strings.Contains(arg, e.execDir+"/") }
		if st.State != 'T' || !slices.ContainsFunc(t.args[pid], ours) {
			continue
		}
		e.log.Info("ending an exec that an earlier server was ending", "pid", pid)
		killTree(proc.ID{PID: pid, StartTime: st.StartTime})
	}
}
