package oci

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/proc"
)

// processTable is all of /proc at one moment.
type processTable map[int]proc.Stat

func readProcesses() processTable {
	pids, _ := proc.PIDs()
	stats := make([]proc.Stat, len(pids))
	proc.InParallel(len(pids), func(i int) {
		if st, err := proc.ReadStat(pids[i]); err == nil {
			stats[i] = st
		}
	})
	t := make(processTable, len(pids))
	for i, pid := range pids {
		if stats[i].StartTime != 0 {
			t[pid] = stats[i]
		}
	}
	return t
}

// commandLines is a table of processes with their arguments, which takes reading each
// process's memory: with thousands of them it is made once. The arguments are those of the
// process in the table only if that still lives: its PID may have been given to another one
// in between.
type commandLines struct {
	processTable
	args map[int][]string // as argsOf returns them; none for those that have ended
}

func readCommandLines() commandLines {
	t := commandLines{readProcesses(), map[int][]string{}}
	pids := slices.Collect(maps.Keys(t.processTable))
	all := make([][]string, len(pids))
	proc.InParallel(len(pids), func(i int) { all[i] = argsOf(pids[i]) })
	for i, pid := range pids {
		if len(all[i]) > 0 {
			t.args[pid] = all[i]
		}
	}
	return t
}

// maxCommandLine, in bytes, and maxArguments bound what is read of a process. Our own have
// less; those of containers may have megabytes each, which their children share.
const maxCommandLine, maxArguments = 16 << 10, 256

// argsOf returns the arguments of a process; nil for none, and for more than any of ours has.
func argsOf(pid int) []string {
	line := ownText(pid, "cmdline")
	if len(line) == 0 || bytes.Count(line, []byte{0}) > maxArguments {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(line), "\x00"), "\x00")
}

// ownText returns the arguments or the environment of a process, as a file of proc(5) has
// them; nil where there is more than any of ours has. A process chooses which of its memory is
// shown there, terabytes of zeros too (PR_SET_MM_MAP, PR_SET_MM(2const)).
func ownText(pid int, file string) []byte {
	f, err := os.Open(fmt.Sprintf("/proc/%d/%s", pid, file))
	if err != nil {
		return nil
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxCommandLine+1))
	if err != nil || len(text) > maxCommandLine {
		return nil
	}
	return text
}

// below reports whether a process is a descendant of another one, or that one.
func (t processTable) below(pid, root int) bool {
	for n := 0; pid > 1 && n < len(t); pid, n = t[pid].PPID, n+1 {
		if pid == root {
			return true
		}
	}
	return false
}

// killTimeout bounds the wait for killed processes to end: one in an
// uninterruptible sleep does not.
const killTimeout = 10 * time.Second

// killAll kills the processes that find returns, waits for their ends, and repeats
// that until there are none: what forks while it is being killed is found the next
// time.
func killAll(find func(processTable) []proc.ID) {
	ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
	defer cancel()
	for ctx.Err() == nil {
		left := find(readProcesses())
		if len(left) == 0 {
			return
		}
		for _, id := range left {
			_ = id.Signal(syscall.SIGKILL)
		}
		for _, id := range left {
			_ = id.Wait(ctx)
		}
	}
}

// killTree ends a helper process with its descendants and its process group. The
// helper is stopped first: it then cannot end before its children and leave them
// to another parent, and a conmon keeps collecting those whose parent has ended
// (PR_SET_CHILD_SUBREAPER, prctl(2)).
func killTree(root proc.ID) {
	if root.Signal(unix.SIGSTOP) != nil {
		return // it has ended
	}
	killAll(func(t processTable) (found []proc.ID) {
		for pid, st := range t {
			if pid == root.PID || st.Ended() || st.Group != root.PID && !t.below(pid, root.PID) {
				continue
			}
			found = append(found, proc.ID{PID: pid, StartTime: st.StartTime})
		}
		return found
	})
	_ = root.Signal(syscall.SIGKILL)
}
