package rootless

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/subpod/subpod/pkg/proc"
	"golang.org/x/sys/unix"
)

// daemon is a Run in a process of its own, as Exec would start it.
type daemon struct {
	Config
	t    *testing.T
	cmd  *exec.Cmd
	log  *logBuffer
	done chan struct{}
	err  error
}

// logBuffer collects output of several processes.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// testDirs makes the directories of a node; sockets want short names, and the
// test's own directories have long ones.
func testDirs(t *testing.T) (runDir, dataDir string) {
	t.Helper()
	base, err := os.MkdirTemp(os.Getenv("XDG_RUNTIME_DIR"), "r")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	return filepath.Join(base, "run"), t.TempDir()
}

// testConfig is a node whose server is a script that runs this test binary.
func testConfig(t *testing.T) Config {
	t.Helper()
	runDir, dataDir := testDirs(t)
	c := Config{RunDir: runDir, DataDir: dataDir, DisableHostLoopback: true}
	c.Server = []string{filepath.Join(dataDir, "server.sh")}
	installServer(t, c, "v1")
	return c
}

// installServer puts a version of the server in place, as an upgrade does.
func installServer(t *testing.T, c Config, version string) {
	t.Helper()
	script := "#!/bin/sh\nexec " + executable(t) + " part-server " + c.RunDir + " " + c.DataDir + " " + version + "\n"
	name := c.Server[0]
	if err := os.WriteFile(name+".new", []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		t.Fatal(err)
	}
}

func executable(t *testing.T) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return exe
}

// startDaemon starts a node; prefix may be a command that runs the daemon.
func startDaemon(t *testing.T, c Config, prefix ...string) *daemon {
	t.Helper()
	b, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	argv := append(prefix, "env", envRole+"="+roleParent, envConfig+"="+string(b), executable(t), "daemon")
	d := &daemon{Config: c, t: t, cmd: exec.Command(argv[0], argv[1:]...), log: &logBuffer{}, done: make(chan struct{})}
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	// Whatever outlives the daemon must not keep Wait from returning.
	d.cmd.WaitDelay = 10 * time.Second
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { d.err = d.cmd.Wait(); close(d.done) }()
	t.Cleanup(func() {
		d.stop()
		if t.Failed() {
			t.Logf("the daemon said:\n%s", d.log)
		}
	})
	return d
}

// stop ends the daemon in good order and returns its exit code.
func (d *daemon) stop() int {
	_ = d.cmd.Process.Signal(unix.SIGTERM)
	return d.wait()
}

func (d *daemon) wait() int {
	d.t.Helper()
	select {
	case <-d.done:
	case <-time.After(time.Minute):
		d.t.Errorf("the daemon does not end")
		_ = d.cmd.Process.Kill()
		<-d.done
	}
	return d.cmd.ProcessState.ExitCode()
}

// server waits for the report of a server other than the one with PID not.
func (d *daemon) server(not int) report {
	d.t.Helper()
	var r report
	d.eventually("a server's report", func() bool {
		r = report{}
		return readJSON(filepath.Join(d.DataDir, "server.json"), &r) == nil && r.PID != not
	})
	return r
}

// eventually waits for a condition, and for the daemon to be there meanwhile.
func (d *daemon) eventually(what string, ok func() bool) {
	d.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		if ok() {
			return
		}
		select {
		case <-d.done:
			d.t.Fatalf("waiting for %s: the daemon has ended (%v):\n%s", what, d.err, d.log)
		default:
		}
		if time.Now().After(deadline) {
			d.t.Fatalf("waiting for %s: nothing after a minute:\n%s", what, d.log)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// load is Load from outside the node.
func (d *daemon) load() *Node {
	d.t.Helper()
	n, err := Load(d.RunDir)
	if err != nil {
		d.t.Fatal(err)
	}
	return n
}

// members returns the processes of a PID namespace as this one sees them.
func members(t *testing.T, pidns uint64) []proc.ID {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var ids []proc.ID
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if ns, err := nsInode(e.Name(), "pid"); err != nil || ns != pidns {
			continue
		}
		if id, err := proc.Identify(pid); err == nil && id.Alive() {
			ids = append(ids, id)
		}
	}
	return ids
}

// goneSoon waits until no process of ids is alive.
func goneSoon(t *testing.T, ids []proc.ID) {
	t.Helper()
	if len(ids) == 0 {
		t.Fatal("no processes to wait for")
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		var alive []int
		for _, id := range ids {
			if id.Alive() {
				alive = append(alive, id.PID)
			}
		}
		if len(alive) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("processes of the node are alive: %v", alive)
		}
	}
}

func childNS(t *testing.T, n *Node, kind string) uint64 {
	t.Helper()
	ns, err := nsInode(strconv.Itoa(n.ChildPID), kind)
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

func ownNS(t *testing.T, kind string) uint64 {
	t.Helper()
	ns, err := nsInode("self", kind)
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

// The life of a node: start, crash of the server, reload, clean stop.
func TestLifecycle(t *testing.T) {
	d := startDaemon(t, testConfig(t))
	first := d.server(0)
	outside := d.load()
	leftover := readPID(t, filepath.Join(d.DataDir, "leftover"))

	t.Run("facts", func(t *testing.T) { checkFacts(t, first, outside) })

	// What the server has started lives on when it is killed.
	if err := unix.Kill(hostPID(t, outside, first.PID), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	second := d.server(first.PID)
	if second.Node.Identity != first.Node.Identity {
		t.Errorf("identity changed from %s to %s though the node is the same", first.Node.Identity, second.Node.Identity)
	}
	if hostPID(t, outside, leftover) == 0 {
		t.Error("the process that the killed server had started is gone")
	}

	installServer(t, d.Config, "v2")
	if err := Reload(t.Context(), d.RunDir); err != nil {
		t.Fatal(err)
	}
	third := d.server(second.PID)
	if third.Version != "v2" || third.Node.Identity != first.Node.Identity {
		t.Errorf("after a reload: version %s, identity %s; want v2, %s", third.Version, third.Node.Identity, first.Node.Identity)
	}
	if b, _ := os.ReadFile(filepath.Join(d.DataDir, "stopped")); string(b) != "v1\n" {
		t.Errorf("servers stopped in good order: %q, want v1", b)
	}
	if hostPID(t, outside, leftover) == 0 {
		t.Error("the process that the first server had started is gone after a reload")
	}

	ids := members(t, childNS(t, outside, "pid"))
	if code := d.stop(); code != 0 {
		t.Errorf("exit code %d after SIGTERM, want 0", code)
	}
	if b, _ := os.ReadFile(filepath.Join(d.DataDir, "stopped")); string(b) != "v1\nv2\n" {
		t.Errorf("servers stopped in good order: %q, want v1, v2", b)
	}
	goneSoon(t, ids)
	if _, err := Load(d.RunDir); !errors.Is(err, ErrNoNode) {
		t.Errorf("Load after the end: %v, want ErrNoNode", err)
	}
	if _, err := os.Stat(nodeDir(d.RunDir)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the node's state directory is still there (%v)", err)
	}
}

func checkFacts(t *testing.T, r report, outside *Node) {
	if r.UID != 0 || !r.Node.Inside || r.Node.ChildPID != 1 || r.Node.Nested {
		t.Errorf("in the node: uid %d, node %+v", r.UID, r.Node)
	}
	if r.NetNS != ownNS(t, "net") {
		t.Error("the server is not in the host's network namespace")
	}
	if r.NodeNetNS == r.NetNS || r.NodeNetNS == 0 {
		t.Errorf("the node network namespace is %d, the host's %d", r.NodeNetNS, r.NetNS)
	}
	if r.MountNS == ownNS(t, "mnt") {
		t.Error("the server is in the host's mount namespace")
	}
	for _, kv := range r.Env {
		if strings.HasPrefix(kv, "_SUBPOD") || strings.HasPrefix(kv, "_ROOTLESSKIT") {
			t.Errorf("the server got %s", kv)
		}
	}
	if outside.Inside || outside.Identity != r.Node.Identity || outside.ChildPID == 1 {
		t.Errorf("from outside: %+v", outside)
	}
	for _, kind := range []string{"user", "mnt", "pid", "ipc", "uts"} {
		if childNS(t, outside, kind) == ownNS(t, kind) {
			t.Errorf("the node shares the host's %s namespace", kind)
		}
	}
	var st syscall.Stat_t
	if err := syscall.Stat(outside.NetNS, &st); err != nil || st.Ino != r.NodeNetNS {
		t.Errorf("Node.NetNS from outside is %d (%v), from inside %d", st.Ino, err, r.NodeNetNS)
	}
	uids, gids := ThisHost().SubordinateIDs()
	checkIDMap(t, "uid", r.Node.UIDMap, os.Getuid(), uids)
	checkIDMap(t, "gid", r.Node.GIDMap, os.Getgid(), gids)
	if b, err := os.ReadFile(outside.ResolvConf); err != nil || string(b) != "nameserver "+slirpDNS+"\n" {
		t.Errorf("resolv.conf is %q (%v)", b, err)
	}
}

// checkIDMap expects root as the user itself, then the subordinate IDs.
func checkIDMap(t *testing.T, kind string, got []IDMap, self int, ranges []SubIDs) {
	t.Helper()
	want := []IDMap{{Container: 0, Host: uint32(self), Size: 1}}
	next := uint32(1)
	for _, r := range ranges {
		want = append(want, IDMap{Container: next, Host: r.First, Size: r.Size})
		next += r.Size
	}
	if len(got) != len(want) {
		t.Fatalf("%s map is %v, want %v", kind, got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("%s map is %v, want %v", kind, got, want)
		}
	}
}

// hostPID returns our PID of the process that has pid in the node, or 0.
func hostPID(t *testing.T, n *Node, pid int) int {
	t.Helper()
	for _, id := range members(t, childNS(t, n, "pid")) {
		b, err := os.ReadFile("/proc/" + strconv.Itoa(id.PID) + "/status")
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if f[0] == "NSpid:" && f[len(f)-1] == strconv.Itoa(pid) {
				return id.PID
			}
		}
	}
	return 0
}

func readPID(t *testing.T, name string) int {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// Whichever of the long-lived processes dies, everything in the node goes with
// it, the next daemon starts, and its node is another one.
func TestKilled(t *testing.T) {
	for _, victim := range []string{"parent", "child", "supervisor"} {
		t.Run(victim, func(t *testing.T) {
			c := testConfig(t)
			d := startDaemon(t, c)
			r := d.server(0)
			n := d.load()
			ids := members(t, childNS(t, n, "pid"))
			pid := map[string]int{"parent": d.cmd.Process.Pid, "child": n.ChildPID, "supervisor": hostPID(t, n, r.PPID)}[victim]
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if code := d.wait(); code == 0 {
				t.Error("exit code 0 of a daemon that was killed")
			}
			goneSoon(t, ids)
			if _, err := Load(c.RunDir); !errors.Is(err, ErrNoNode) {
				t.Errorf("Load: %v, want ErrNoNode", err)
			}
			if _, err := Enter(t.Context(), c.RunDir, []string{"true"}, EnterOptions{}); !errors.Is(err, ErrNoNode) {
				t.Errorf("Enter: %v, want ErrNoNode", err)
			}
			os.Remove(filepath.Join(c.DataDir, "server.json"))
			os.Remove(filepath.Join(c.DataDir, "leftover"))
			next := startDaemon(t, c).server(0)
			if next.Node.Identity == r.Node.Identity {
				t.Errorf("a new node has the identity of the old one: %s", r.Node.Identity)
			}
		})
	}
}

// serverExits makes the servers of c end at once with the given code.
func serverExits(t *testing.T, c Config, code int) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(c.DataDir, "exit-with"), []byte(strconv.Itoa(code)), 0o600); err != nil {
		t.Fatal(err)
	}
}

// starts returns when the servers of d have started that end at once.
func starts(c Config) []string {
	b, _ := os.ReadFile(filepath.Join(c.DataDir, "starts"))
	return strings.Fields(string(b))
}

// Once a server has been ready, servers are started for ever, with growing pauses,
// also when they refuse their configuration.
func TestServerFails(t *testing.T) {
	c := testConfig(t)
	d := startDaemon(t, c)
	first := d.server(0)
	if err := d.load().Ready(); err != nil {
		t.Fatal(err)
	}
	serverExits(t, c, 1)
	if err := unix.Kill(hostPID(t, d.load(), first.PID), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	d.eventually("four starts", func() bool { return len(starts(c)) >= maxFirstFailures+1 })
	var last time.Time
	least := minPause
	for i, s := range starts(c)[:4] {
		at, err := time.Parse(time.RFC3339Nano, s)
		if err != nil {
			t.Fatal(err)
		}
		if i > 0 {
			if least *= 2; at.Sub(last) < least {
				t.Errorf("start %d came %v after the one before, want at least %v", i+1, at.Sub(last), least)
			}
		}
		last = at
	}
	serverExits(t, c, ExitConfig)
	before := len(starts(c))
	d.eventually("two more starts", func() bool { return len(starts(c)) >= before+2 })
	if err := os.Remove(filepath.Join(c.DataDir, "exit-with")); err != nil {
		t.Fatal(err)
	}
	d.server(first.PID)
}

// The first server of a node refuses its configuration: the node ends at once.
func TestServerRefusesConfig(t *testing.T) {
	c := testConfig(t)
	serverExits(t, c, ExitConfig)
	d := startDaemon(t, c)
	if code := d.wait(); code != ExitConfig {
		t.Errorf("exit code %d, want %d", code, ExitConfig)
	}
	if n := len(starts(c)); n != 1 {
		t.Errorf("%d starts, want 1", n)
	}
}

// A server that has never been ready and always fails ends the node, with the
// server's exit code and a word of how it came.
func TestServerNeverReady(t *testing.T) {
	c := testConfig(t)
	serverExits(t, c, 9)
	d := startDaemon(t, c)
	if code := d.wait(); code != 9 {
		t.Errorf("exit code %d, want the server's 9", code)
	}
	if n := len(starts(c)); n != maxFirstFailures {
		t.Errorf("%d starts, want %d", n, maxFirstFailures)
	}
	if !strings.Contains(d.log.String(), "the server cannot start") {
		t.Error("the daemon does not report what has happened")
	}
}

// A child that dies while rootlesskit sets up the node ends the daemon with an
// error; rootlesskit alone would wait for it for ever. One program that the
// child needs is missing, at the two moments when the parent waits for it.
func TestStartFails(t *testing.T) {
	for _, missing := range []string{"mount", "ip"} {
		t.Run(missing, func(t *testing.T) {
			c := testConfig(t)
			c.Uplink = UplinkNone
			// The parent's check finds the program, the child's run of it fails.
			dir := t.TempDir()
			script := "#!/bin/sh\necho no " + missing + " today >&2\nexit 9\n"
			if err := os.WriteFile(filepath.Join(dir, missing), []byte(script), 0o755); err != nil {
				t.Fatal(err)
			}
			d := startDaemon(t, c, "env", "PATH="+dir+":"+os.Getenv("PATH"))
			if code := d.wait(); code == 0 {
				t.Error("exit code 0")
			}
			if !strings.Contains(d.log.String(), "no "+missing+" today") {
				t.Error("the daemon does not say why")
			}
		})
	}
}
