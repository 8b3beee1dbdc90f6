package stats

import (
	"bytes"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
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

// process is what /proc/PID/stat says of one.
type process struct {
	pid, ppid      int
	state          byte
	user, system   uint64 // ticks, with those of children that were waited for
	minor, major   uint64 // page faults, likewise
	threads, start uint64
	children       []*process
}

// readProcesses reads all processes that there are. Those that end meanwhile
// are left out.
func readProcesses() *processes {
	t := &processes{at: time.Now(), byPID: map[int]*process{}}
	dir, err := os.Open("/proc")
	if err != nil {
		return t
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	names = slices.DeleteFunc(names, func(name string) bool { return name[0] < '0' || name[0] > '9' })
	found := make([]*process, len(names))
	inParallel(len(names), func(i int) {
		pid, err := strconv.Atoi(names[i])
		if err != nil {
			return
		}
		text, err := readSmall("/proc/" + names[i] + "/stat")
		if err != nil {
			return
		}
		if p, ok := parseStat(text); ok {
			p.pid = pid
			found[i] = p
		}
	})
	for _, p := range found {
		if p != nil {
			t.byPID[p.pid] = p
		}
	}
	for _, p := range t.byPID {
		if parent := t.byPID[p.ppid]; parent != nil {
			parent.children = append(parent.children, p)
		}
	}
	return t
}

// inParallel calls do for 0 to n-1, on as many processors as there are.
func inParallel(n int, do func(int)) {
	var next atomic.Int64
	var group sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), n) {
		group.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				do(i)
			}
		})
	}
	group.Wait()
}

// readSmall reads a file of /proc that is known to be short, by three system calls.
func readSmall(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	text := make([]byte, 1024)
	n, err := unix.Read(fd, text)
	if err != nil {
		return nil, err
	}
	return text[:n], nil
}

// parseStat parses /proc/PID/stat (proc_pid_stat(5)). A process names itself,
// also ") 1 (": the fields are counted from the last parenthesis.
func parseStat(text []byte) (*process, bool) {
	i := bytes.LastIndexByte(text, ')')
	if i < 0 {
		return nil, false
	}
	f := strings.Fields(string(text[i+1:])) // f[0] is field 3
	if len(f) < 20 || len(f[0]) != 1 {
		return nil, false
	}
	ok := true
	field := func(n int) uint64 {
		v, err := strconv.ParseUint(f[n-3], 10, 64)
		ok = ok && err == nil
		return v
	}
	p := &process{
		state: f[0][0], ppid: int(field(4)),
		minor: field(10) + field(11), major: field(12) + field(13),
		user: field(14) + field(16), system: field(15) + field(17),
		threads: field(20), start: field(22),
	}
	return p, ok
}

// of returns the processes of the container whose main process is init: those
// in its mount namespace, which an exec enters too and which no two containers
// share, and the descendants of all these.
func (t *processes) of(init proc.ID) []*process {
	first := t.byPID[init.PID]
	if init.PID <= 0 || first == nil || first.start != init.StartTime {
		return nil
	}
	if t.mounts == nil {
		t.readNamespaces()
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

// readNamespaces finds the processes that are in another mount namespace than we. A
// container that the OCI runtime has on the way is in ours, and we would be counted
// in.
func (t *processes) readNamespaces() {
	all := slices.Collect(maps.Values(t.byPID))
	in := make([]string, len(all))
	inParallel(len(all), func(i int) {
		in[i], _ = os.Readlink("/proc/" + strconv.Itoa(all[i].pid) + "/ns/mnt")
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
		cpu.UserUsec += p.user * tickUsec
		cpu.SystemUsec += p.system * tickUsec
		faults += p.minor + p.major
		majors += p.major
		if p.state == 'Z' || p.state == 'X' {
			continue
		}
		count++
		tasks += p.threads
		resident, mapped := pages(p.pid)
		anon += (resident - min(resident, mapped)) * page
		shared = max(shared, min(resident, mapped)*page)
	}
	cpu.UsageUsec = cpu.UserUsec + cpu.SystemUsec
	if m.CPU == nil {
		m.CPU = &cpu
		m.At = t.at
	}
	if m.Memory == nil {
		m.Memory = &cgroup.Memory{Current: anon + shared, Stat: map[string]uint64{
			"anon": anon, "file_mapped": shared, "pgfault": faults, "pgmajfault": majors,
		}}
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
	text, err := readSmall("/proc/" + strconv.Itoa(pid) + "/statm")
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
