package stats

import (
	"bytes"
	"cmp"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/subpod/subpod/pkg/proc"
)

// Process is one process of a container.
type Process struct {
	// PID and PPID are those of the innermost PID namespace of the process; Node
	// is the PID in ours.
	PID, PPID, Node int
	UID             uint32 // as the node sees it
	State           string // one letter (proc_pid_stat(5))
	CPU             time.Duration
	RSS             uint64 // bytes
	Threads         int
	Started         time.Time
	Command         string // arguments, separated by spaces; [name] without any
}

// Processes lists the processes of the container whose main process is init, by
// PID; none when it does not run.
func Processes(init proc.ID) []Process {
	all := readProcesses()
	inner := map[int]int{}
	var out []Process
	boot := bootTime()
	page := uint64(os.Getpagesize())
	members := all.of(init)
	for _, p := range members {
		inner[p.pid] = innerPID(p.pid)
	}
	for _, p := range members {
		resident, _ := pages(p.pid)
		pr := Process{
			PID: inner[p.pid], PPID: inner[p.PPID], Node: p.pid, State: string(p.State),
			CPU: time.Duration(p.userTicks()+p.systemTicks()) * tickUsec * time.Microsecond,
			RSS: resident * page, Threads: int(p.Threads),
			Started: boot.Add(time.Duration(p.StartTime) * tickUsec * time.Microsecond),
			Command: commandLine(p.pid),
		}
		if st, err := os.Stat("/proc/" + strconv.Itoa(p.pid)); err == nil {
			if s, ok := st.Sys().(*syscall.Stat_t); ok {
				pr.UID = s.Uid
			}
		}
		out = append(out, pr)
	}
	slices.SortFunc(out, func(a, b Process) int { return cmp.Compare(a.Node, b.Node) })
	return out
}

// innerPID returns a process's number in its innermost PID namespace, 0 when it has ended.
func innerPID(pid int) int {
	pids, err := proc.NamespacePIDs(pid)
	if err != nil {
		return 0
	}
	return pids[len(pids)-1]
}

// maxCommand is how much of a command line is read, in bytes.
const maxCommand = 4096

// commandLine returns the beginning of the arguments of a process. It chooses itself which of
// its memory they are, terabytes of zeros too (PR_SET_MM_MAP, PR_SET_MM(2const)).
func commandLine(pid int) string {
	dir := "/proc/" + strconv.Itoa(pid)
	var buf [maxCommand]byte
	text, _ := proc.ReadShort(dir+"/cmdline", buf[:])
	text = bytes.TrimRight(text, "\x00")
	if len(text) > 0 {
		return string(bytes.ReplaceAll(text, []byte{0}, []byte{' '}))
	}
	name, _ := os.ReadFile(dir + "/comm")
	return "[" + strings.TrimSpace(string(name)) + "]"
}

// bootTime is when the clock of start times began (btime in proc_stat(5)).
func bootTime() time.Time {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return time.Time{}
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "btime "); ok {
			s, _ := strconv.ParseInt(strings.TrimSpace(rest), 10, 64)
			return time.Unix(s, 0)
		}
	}
	return time.Time{}
}
