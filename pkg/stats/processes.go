package stats

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/cgroup"
	"github.com/subpod/subpod/pkg/proc"
)

// tickUsec is the unit of times in /proc/PID/stat: USER_HZ is 100 on every
// architecture that Go knows (proc(5), "clock ticks").
const tickUsec = 10_000

// processes is all of /proc at one moment.
type processes struct {
	at     time.Time
	byPID  map[int]*process
	mounts map[string][]*process // by mount namespace, made when first asked for
	inside map[*process]string   // mount namespaces that are not our own
}

// process is one process with its children.
type process struct {
	proc.Stat
	pid      int
	children []*process
}

// userTicks and systemTicks include those of children that were waited for.
func (p *process) userTicks() uint64   { return p.User + p.ChildrenUser }
func (p *process) systemTicks() uint64 { return p.System + p.ChildrenSystem }

// cpuUsec returns the CPU time of all threads of the process, also of those that have
// ended, by its clock, and of children that were waited for, by their ticks.
func (p *process) cpuUsec() uint64 {
	children := (p.ChildrenUser + p.ChildrenSystem) * tickUsec
	var now unix.Timespec
	if err := unix.ClockGettime(cpuClock(p.pid), &now); err != nil {
		return children + (p.User+p.System)*tickUsec // it is gone since
	}
	return children + uint64(now.Nano())/1000
}

// cpuClock is the CPU clock of a process: clock_getcpuclockid(3), which is in the C library,
// makes it so (CPUCLOCK_SCHED is 2 in the kernel's posix-timers.h).
func cpuClock(pid int) int32 { return int32(^pid<<3 | 2) }

// readProcesses reads all processes that there are. Those that end meanwhile
// are left out.
func readProcesses() *processes {
	t := &processes{at: time.Now(), byPID: map[int]*process{}}
	pids, err := proc.PIDs()
	if err != nil {
		return t
	}
	found := make([]*process, len(pids))
	proc.InParallel(len(pids), func(i int) {
		if st, err := proc.ReadStat(pids[i]); err == nil {
			found[i] = &process{Stat: st, pid: pids[i]}
		}
	})
	for _, p := range found {
		if p != nil {
			t.byPID[p.pid] = p
		}
	}
	for _, p := range t.byPID {
		if parent := t.byPID[p.PPID]; parent != nil {
			parent.children = append(parent.children, p)
		}
	}
	return t
}

// of returns the processes of the container whose main process is init: those
// in its mount namespace, which an exec enters too and which no two containers
// share, and the descendants of all these.
func (t *processes) of(init proc.ID) []*process {
	first := t.byPID[init.PID]
	if init.PID <= 0 || first == nil || first.StartTime != init.StartTime {
		return nil
	}
	if t.mounts == nil {
		t.readNamespaces(nil)
	}
	queue := []*process{first}
	if ns, ok := t.inside[first]; ok {
		queue = append(queue, t.mounts[ns]...)
	}
	seen := map[*process]bool{}
	var out []*process
	for len(queue) > 0 {
		p := queue[0]
		queue = queue[1:]
		if !seen[p] {
			seen[p] = true
			out = append(out, p)
			queue = append(queue, p.children...)
		}
	}
	return out
}

// prepare makes all that of needs for these containers: it may then be called by several
// threads. Descendants of a container's init are its, wherever they are: with thousands
// of processes it takes as long to look at their mount namespaces as to read them.
func (t *processes) prepare(containers []Container) {
	claimed := map[*process]bool{}
	for _, ct := range containers {
		first := t.byPID[ct.Init.PID]
		if first == nil || first.StartTime != ct.Init.StartTime {
			continue
		}
		for queue := slices.Clone(first.children); len(queue) > 0; queue = queue[1:] {
			if !claimed[queue[0]] {
				claimed[queue[0]] = true
				queue = append(queue, queue[0].children...)
			}
		}
	}
	t.readNamespaces(claimed)
}

// readNamespaces finds the processes that are in another mount namespace than we, but
// for those that are known anyway. A container that the OCI runtime has on the way is in
// ours, and we would be counted in.
func (t *processes) readNamespaces(known map[*process]bool) {
	all := make([]*process, 0, len(t.byPID))
	for _, p := range t.byPID {
		if !known[p] {
			all = append(all, p)
		}
	}
	in := make([]string, len(all))
	proc.InParallel(len(all), func(i int) {
		dir := "/proc/" + strconv.Itoa(all[i].pid)
		if all[i].State == 'Z' { // its first thread has ended, others may run
			dir = proc.Dir(all[i].pid)
		}
		in[i], _ = os.Readlink(dir + "/ns/mnt")
	})
	own, _ := os.Readlink("/proc/self/ns/mnt")
	t.mounts, t.inside = map[string][]*process{}, map[*process]string{}
	for i, ns := range in {
		if ns != "" && ns != own {
			t.mounts[ns] = append(t.mounts[ns], all[i])
			t.inside[all[i]] = ns
		}
	}
}

// fill sets those parts of m that no cgroup has given, from the processes of
// the container; none of them when it does not run.
//
// Memory is an estimate: the private memory of all processes, and the shared
// memory (files, shmem) of the one that has most of it, since processes of a
// container map the same files. Page cache is not known.
func (t *processes) fill(m *measured, init proc.ID) {
	ps := t.of(init)
	if len(ps) == 0 {
		return
	}
	var cpu cgroup.CPU
	var anon, shared, faults, majors, tasks, count uint64
	page := uint64(os.Getpagesize())
	for _, p := range ps {
		cpu.UsageUsec += p.cpuUsec()
		cpu.UserUsec += p.userTicks() * tickUsec
		cpu.SystemUsec += p.systemTicks() * tickUsec
		major := p.MajorFaults + p.ChildrenMajorFaults
		faults += p.MinorFaults + p.ChildrenMinorFaults + major
		majors += major
		if p.Ended() {
			continue
		}
		count++
		tasks += p.Threads
		resident, mapped := pages(p.pid)
		anon += (resident - min(resident, mapped)) * page
		shared = max(shared, min(resident, mapped)*page)
	}
	if m.CPU == nil {
		m.CPU = &cpu
		m.At = t.at
		m.grain = 2 * tickUsec * 1000 // a child's time goes from its clock to its parent's ticks, user's and system's
	}
	if m.Memory == nil {
		m.Memory = &cgroup.Memory{Current: anon + shared, Stat: map[string]uint64{
			"anon": anon, "file_mapped": shared, "pgfault": faults, "pgmajfault": majors,
		}, Pressure: m.MemoryPressure}
	}
	if m.Pids == nil {
		m.Pids = &cgroup.Pids{Current: tasks}
	}
	if m.processes == 0 {
		m.processes = count
	}
}

// pages returns the resident pages of a process, and those of them that are
// backed by files or shared memory. (statm adds up what stat only estimates.)
func pages(pid int) (resident, shared uint64) {
	var buf [128]byte
	text, err := proc.ReadShort("/proc/"+strconv.Itoa(pid)+"/statm", buf[:])
	if err != nil {
		return 0, 0
	}
	f := strings.Fields(string(text))
	if len(f) < 3 {
		return 0, 0
	}
	resident, _ = strconv.ParseUint(f[1], 10, 64)
	shared, _ = strconv.ParseUint(f[2], 10, 64)
	return resident, shared
}

// countProcesses counts the processes in a cgroup and below it. (pids.current
// counts tasks, which threads are too.)
func countProcesses(dir string) uint64 {
	var n uint64
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return fs.SkipDir // removed meanwhile
		}
		if d.IsDir() {
			if text, err := os.ReadFile(filepath.Join(path, "cgroup.procs")); err == nil {
				n += uint64(bytes.Count(text, []byte{'\n'}))
			}
		}
		return nil
	})
	return n
}
