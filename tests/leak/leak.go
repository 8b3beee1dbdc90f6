// Package leak compares what a test has found with what it leaves: processes,
// mounts, listening ports, temporary files on the host; inside the node also
// namespace pins, interfaces and packet filter rules.
package leak

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Snapshot has one entry for each thing that can be left: its name, and words for
// a person. Names are the same in two snapshots of the same thing.
type Snapshot map[string]string

// Settle is how long Left waits for what is about to end. The kernel takes down
// network namespaces one after the other, with all their interfaces, in its own time:
// seconds on a busy machine.
const Settle = time.Minute

// Left returns what is in a new snapshot and was not in before, after some time
// for what the kernel does late (a veth goes shortly after its namespace).
func Left(before Snapshot, take func() Snapshot) []string {
	return leftAfter(Settle, before, take)
}

func leftAfter(settle time.Duration, before Snapshot, take func() Snapshot) []string {
	deadline := time.Now().Add(settle)
	for {
		var left []string
		for name, words := range take() {
			if _, was := before[name]; !was {
				left = append(left, strings.TrimSpace(name+" "+words))
			}
		}
		if len(left) == 0 || time.Now().After(deadline) {
			slices.Sort(left)
			return left
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// Host looks at the machine, at what is this test's alone: all descendants of this
// process and the ports that they listen on, mounts below dirs and the directories of
// tests/user.sh, and temporary files of the user and its subordinate users that have a
// name which only the daemon and its programs give. Other programs come and go as
// they like, also the user's. Node directories themselves (dirs) are for their owner
// to remove.
func Host(dirs ...string) Snapshot {
	s := Snapshot{}
	sockets := map[string]bool{}
	for _, p := range descendants(os.Getpid()) {
		s[fmt.Sprintf("process %d@%s", p.pid, p.start)] = p.words()
		links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", p.pid))
		for _, link := range links {
			if target, err := os.Readlink(link); err == nil && strings.HasPrefix(target, "socket:[") {
				sockets[strings.TrimSuffix(target[len("socket:["):], "]")] = true
			}
		}
	}
	if data, err := os.ReadFile("/proc/self/mountinfo"); err == nil {
		s.hostMounts(string(data), append(ownDirs(), dirs...))
	}
	for _, table := range tables {
		data, err := os.ReadFile("/proc/self/net/" + table)
		if err != nil {
			continue
		}
		for _, l := range listeners(table, string(data)) {
			if sockets[l.inode] {
				s[fmt.Sprintf("port %s %s:%d", table, l.host, l.port)] = ""
			}
		}
	}
	s.temporary()
	return s
}

// hostMounts adds the mounts below dirs. What others mount and unmount meanwhile is
// theirs, also when it is of the same user.
func (s Snapshot) hostMounts(mountinfo string, dirs []string) {
	for line := range strings.Lines(mountinfo) {
		f := strings.Fields(line)
		if len(f) > 4 && slices.ContainsFunc(dirs, func(dir string) bool { return below(f[4], dir) }) {
			s["mount "+strings.TrimSpace(line)] = ""
		}
	}
}

// below reports whether path is dir or below it.
func below(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

var tables = []string{"tcp", "tcp6", "udp", "udp6"}

type listener struct {
	host  string // in the table's own notation
	port  uint64
	inode string
}

// listeners returns the sockets in a /proc/net table that wait for a peer.
func listeners(table, data string) (all []listener) {
	for line := range strings.Lines(data) {
		f := strings.Fields(line)
		if len(f) < 10 {
			continue
		}
		// 0A is LISTEN; an unconnected UDP socket is in state 07.
		if f[3] != "0A" && (f[3] != "07" || !strings.HasPrefix(table, "udp")) {
			continue
		}
		host, port, _ := strings.Cut(f[1], ":")
		n, _ := strconv.ParseUint(port, 16, 16)
		all = append(all, listener{host, n, f[9]})
	}
	return all
}

// temporary adds files in the usual places that belong to this user or one of its
// subordinate users.
func (s Snapshot) temporary() {
	ranges := subordinate("/etc/subuid")
	for _, dir := range []string{"/tmp", "/var/tmp", "/dev/shm", os.Getenv("TMPDIR")} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, e := range entries {
			info, err := e.Info()
			if err != nil {
				continue
			}
			st, ok := info.Sys().(*syscall.Stat_t)
			if !ok {
				continue
			}
			ours := int(st.Uid) == os.Getuid()
			for _, r := range ranges {
				ours = ours || (int(st.Uid) >= r[0] && int(st.Uid) < r[0]+r[1])
			}
			if ours && (dir == os.Getenv("TMPDIR") || ownName(e.Name())) {
				s["file "+filepath.Join(dir, e.Name())] = ""
			}
		}
	}
}

// ownDirs are what tests/user.sh has made for this test.
func ownDirs() (dirs []string) {
	for _, name := range []string{"SUBPOD_TEST_DIR", "XDG_RUNTIME_DIR"} {
		if dir := os.Getenv(name); dir != "" && os.Getenv("SUBPOD_TEST_DIR") != "" {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// ownName reports whether a file in a directory that everyone uses is the daemon's or
// one of its programs'. A user has other programs, such as Docker's and Podman's.
func ownName(name string) bool {
	for _, word := range []string{"subpod", "rootlesskit", "slirp4netns", "conmon", "fuse-overlayfs", "container_images"} {
		if strings.HasPrefix(strings.TrimPrefix(name, "."), word) {
			return true
		}
	}
	return false
}

func subordinate(file string) (ranges [][2]int) {
	f, err := os.Open(file)
	if err != nil {
		return nil
	}
	defer f.Close()
	user := os.Getenv("USER")
	for lines := bufio.NewScanner(f); lines.Scan(); {
		p := strings.Split(lines.Text(), ":")
		if len(p) != 3 || (p[0] != user && p[0] != strconv.Itoa(os.Getuid())) {
			continue
		}
		first, err1 := strconv.Atoi(p[1])
		count, err2 := strconv.Atoi(p[2])
		if err1 == nil && err2 == nil {
			ranges = append(ranges, [2]int{first, count})
		}
	}
	return ranges
}

// Process is a running process.
type Process struct {
	PID  int
	Name string // as in /proc/PID/comm
}

// Descendants lists the processes below pid.
func Descendants(pid int) (all []Process) {
	for _, p := range descendants(pid) {
		all = append(all, Process{p.pid, p.binary})
	}
	return all
}

type process struct {
	pid, parent          int
	state, start, binary string
}

func (p process) words() string {
	args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.pid))
	if err != nil || len(args) == 0 {
		return p.binary + " (" + p.state + ")"
	}
	return strings.TrimSpace(strings.ReplaceAll(string(args), "\x00", " "))
}

// parseStat reads a line of /proc/PID/stat.
func parseStat(line string) (process, bool) {
	open, end := strings.IndexByte(line, '('), strings.LastIndexByte(line, ')')
	if open < 0 || end < open {
		return process{}, false
	}
	f := strings.Fields(line[end+1:])
	if len(f) < 20 {
		return process{}, false
	}
	pid, err1 := strconv.Atoi(strings.TrimSpace(line[:open]))
	parent, err2 := strconv.Atoi(f[1])
	return process{pid: pid, parent: parent, binary: line[open+1 : end], state: f[0], start: f[19]}, err1 == nil && err2 == nil
}

// descendants lists the processes below pid, and reaps those that were handed to
// this process and have ended.
func descendants(pid int) []process {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	children := map[int][]process{}
	for _, file := range stats {
		data, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		if p, ok := parseStat(string(data)); ok {
			children[p.parent] = append(children[p.parent], p)
		}
	}
	var all []process
	for queue := []int{pid}; len(queue) > 0; queue = queue[1:] {
		for _, p := range children[queue[0]] {
			if p.state == "Z" && p.parent == os.Getpid() {
				syscall.Wait4(p.pid, nil, syscall.WNOHANG, nil)
				continue
			}
			all = append(all, p)
			queue = append(queue, p.pid)
		}
	}
	return all
}

// KillDescendants ends what a failed test has left running below this process and
// was not running in before.
func KillDescendants(before Snapshot) {
	for range 3 {
		for _, p := range descendants(os.Getpid()) {
			if _, was := before[fmt.Sprintf("process %d@%s", p.pid, p.start)]; !was {
				syscall.Kill(p.pid, syscall.SIGKILL)
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Output runs a command inside a node and returns its standard output.
type Output func(argv ...string) (string, error)

// probe prints what Node reads. It leaves itself out, and the rules that the port
// driver makes at the first connection from outside and keeps.
const probe = `
echo "== mounts"; cat /proc/self/mountinfo
for t in tcp tcp6 udp udp6; do echo "== $t"; cat /proc/net/$t; done
echo "== links"; cat /proc/net/dev
echo "== processes"
for p in /proc/[0-9]*; do read -r line 2>/dev/null <$p/stat && echo "$$ $line"; done
echo "== rules"; nft list ruleset 2>/dev/null | sed '/^table inet rootlesskit_transparent/,/^}/d'
echo "== files"; for d in pods containers exits oci/crun oci/runc; do
	for f in "$0/$d"/*; do [ -e "$f" ] && echo "$d/${f##*/}"; done
done
echo "== end"`

// Node looks inside a node, whose run directory is given. Processes are counted
// by name: a server that was started again is no leak, a second one is. Take the
// first snapshot after one pod has come and gone: the bridge and its rules are
// made for the first pod and stay.
func Node(inside Output, runDir string) (Snapshot, error) {
	out, err := inside("sh", "-c", probe, runDir)
	if err != nil {
		return nil, fmt.Errorf("look into the node: %w", err)
	}
	if !strings.Contains(out, "== end") {
		return nil, fmt.Errorf("look into the node: cut short: %q", out)
	}
	s := Snapshot{}
	for _, section := range strings.Split("\n"+out, "\n== ")[1:] {
		name, body, _ := strings.Cut(section, "\n")
		s.section(name, body, runDir)
	}
	return s, nil
}

func (s Snapshot) section(name, body, runDir string) {
	switch name {
	case "tcp", "tcp6", "udp", "udp6":
		// A server that was started again has taken another streaming port.
		for i, l := range listeners(name, body) {
			s[fmt.Sprintf("port %s, number %d", name, i+1)] = fmt.Sprintf("(%s:%d)", l.host, l.port)
		}
		return
	case "processes":
		s.processes(body)
		return
	}
	for line := range strings.Lines(body) {
		line = strings.TrimSpace(line)
		if name == "links" {
			line, _, _ = strings.Cut(line, ":")
		}
		if name == "mounts" {
			if received(line, runDir) {
				continue
			}
			line = mountName(line)
		}
		if line != "" {
			s[strings.TrimSuffix(name, "s")+" "+line] = ""
		}
	}
}

// received reports whether a mount has come from outside: the node's mounts follow
// the host's, where others mount what they like. Such a one has a master. So has a
// bind mount of a directory of the host, which is the node's where it lies below its
// run directory.
func received(line, runDir string) bool {
	f := strings.Fields(line)
	sep := slices.Index(f, "-")
	if sep < 6 || below(f[4], runDir) {
		return false
	}
	return slices.ContainsFunc(f[6:sep], func(field string) bool { return strings.HasPrefix(field, "master:") })
}

// mountName drops the IDs of a mountinfo line, which differ in each look from a
// new mount namespace.
func mountName(line string) string {
	f := strings.Fields(line)
	sep := slices.Index(f, "-")
	if sep < 5 || len(f) < sep+3 {
		return ""
	}
	return f[4] + " (" + f[sep+1] + " " + f[3] + ")"
}

func (s Snapshot) processes(body string) {
	children := map[int][]process{}
	var self int
	for line := range strings.Lines(body) {
		pid, stat, _ := strings.Cut(line, " ")
		self, _ = strconv.Atoi(pid)
		if p, ok := parseStat(stat); ok {
			children[p.parent] = append(children[p.parent], p)
		}
	}
	count := map[string]int{}
	for _, list := range children {
		for _, p := range list {
			if p.pid == self || p.parent == self {
				continue
			}
			if p.binary == "subpod-monitor" && p.state != "Z" {
				continue // the node's own: it stays for a while without containers
			}
			name := p.binary
			if p.state == "Z" {
				name += " (ended, not reaped)"
			}
			count[name]++
			s[fmt.Sprintf("process %s, number %d", name, count[name])] = ""
		}
	}
}

// Inside is Output by a command that enters the node, such as "subpod nsenter --".
func Inside(enter ...string) Output {
	return func(argv ...string) (string, error) {
		full := append(slices.Clone(enter), argv...)
		out, err := exec.Command(full[0], full[1:]...).Output()
		return string(out), err
	}
}
