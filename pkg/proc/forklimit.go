package proc

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ForkLimit names the limit that keeps the process pid from starting another one, with how
// much of it is used: pids.max of one of its cgroups, RLIMIT_NPROC of this process,
// kernel.threads-max, kernel.pid_max. "" when none of them is (nearly) reached, as far as
// can be seen from here. fork(2) answers EAGAIN for all of them, and when the machine was
// too busy.
func ForkLimit(pid int) string {
	nproc := uint64(unix.RLIM_INFINITY)
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NPROC, &limit) == nil {
		nproc = limit.Cur
	}
	return forkLimits{proc: "/proc", cgroup: "/sys/fs/cgroup", nproc: nproc, threads: threads}.reached(pid)
}

type forkLimits struct {
	proc, cgroup string
	nproc        uint64
	threads      func() uint64 // of all processes that can be seen
}

func (l forkLimits) reached(pid int) string {
	if text := l.cgroupLimit(pid); text != "" {
		return text
	}
	used := l.threads()
	if near(used, l.nproc) {
		return fmt.Sprintf("RLIMIT_NPROC: at least %d of %d; raise LimitNPROC= of the daemon's unit, or ulimit -u", used, l.nproc)
	}
	// "0.00 0.00 0.00 2/345 6789": the threads of the whole machine.
	if fields := strings.Fields(readText(l.proc, "loadavg")); len(fields) > 3 {
		_, all, _ := strings.Cut(fields[3], "/")
		used = max(used, number(all))
	}
	for _, name := range []string{"threads-max", "pid_max"} {
		if most := number(readText(l.proc, "sys/kernel", name)); most > 0 && near(used, most) {
			return fmt.Sprintf("kernel.%s: %d of %d; the machine's administrator can raise it by sysctl", name, used, most)
		}
	}
	return ""
}

// cgroupLimit looks at the process's cgroups and all above them, of both versions.
func (l forkLimits) cgroupLimit(pid int) string {
	for line := range strings.Lines(readText(l.proc, strconv.Itoa(pid), "cgroup")) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) < 3 || fields[1] != "" && fields[1] != "pids" || !strings.HasPrefix(fields[2], "/") {
			continue
		}
		for _, mount := range []string{"", "unified", "pids"} {
			for dir := filepath.Clean(fields[2]); ; dir = filepath.Dir(dir) {
				at := filepath.Join(l.cgroup, mount, dir)
				used, most := number(readText(at, "pids.current")), number(readText(at, "pids.max"))
				if most > 0 && near(used, most) {
					return fmt.Sprintf("pids.max of the cgroup %s: %d of %d; raise it (TasksMax= of a unit or slice, the pod's limit)", dir, used, most)
				}
				if dir == "/" {
					break
				}
			}
		}
	}
	return ""
}

// near reports whether a limit is reached, or was a moment ago: processes have ended since.
func near(used, most uint64) bool { return used+max(2, most/16) >= most && most < 1<<40 }

// number reads a number; 0 for what is none, as "max".
func number(text string) uint64 {
	n, err := strconv.ParseUint(strings.TrimSpace(text), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

func readText(path ...string) string {
	b, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		return ""
	}
	return string(b)
}

func threads() uint64 {
	pids, err := PIDs()
	if err != nil {
		return 0
	}
	n := uint64(0)
	for _, pid := range pids {
		if st, err := ReadStat(pid); err == nil {
			n += st.Threads
		}
	}
	return n
}
