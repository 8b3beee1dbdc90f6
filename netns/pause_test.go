package netns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/subpod/subpod/pkg/idmap"
	"github.com/subpod/subpod/pkg/proc"
	"golang.org/x/sys/unix"
)

// startIn runs a command as a new child in the pinned PID namespace, through
// nsenter(1), which forks it there.
func startIn(pidNS string, argv ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"--pid=" + pidNS, "--"}, argv...)...)
}

// status returns the fields of /proc/PID/status.
func status(t *testing.T, pid int) map[string]string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprint("/proc/", pid, "/status"))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(line, ":")
		out[name] = strings.Join(strings.Fields(value), " ")
	}
	return out
}

func TestPause(t *testing.T) {
	for name, spec := range map[string]PinSpec{
		"the pod has nothing else of its own": {},
		"the pod has namespaces":              {Net: true, IPC: true, UTS: true},
		"root":                                {Net: true, IPC: true, UTS: true},
	} {
		t.Run(name, func(t *testing.T) {
			before := nsMounts(t)
			spec.Dir, spec.PID = t.TempDir(), true
			if name != "root" {
				spec.PauseUID, spec.PauseGID = 65535, 65534
			}
			pins, err := Pin(context.Background(), spec)
			if err != nil {
				t.Fatal(err)
			}
			defer mustUnpin(t, spec.Dir)
			if pins.PID != filepath.Join(spec.Dir, "pid") || !pins.Pause.Alive() {
				t.Fatalf("pin %s, pause process %+v alive %v", pins.PID, pins.Pause, pins.Pause.Alive())
			}
			checkPause(t, pins, spec.PauseUID, spec.PauseGID)
			checkReaping(t, pins.PID)
			mustUnpin(t, spec.Dir)
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			if err := pins.Pause.Wait(ctx); err != nil {
				t.Errorf("the pause process lives on after Unpin: %v", err)
			}
			mustBeCollected(t, pins.Pause.PID)
			if n := nsMounts(t); n != before {
				t.Errorf("%d pins are left", n-before)
			}
		})
	}
}

func mustBeCollected(t *testing.T, pid int) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		if _, err := proc.Identify(pid); errors.Is(err, proc.ErrGone) {
			return
		}
		if time.Now().After(end) {
			t.Fatal("the pause process was not collected: it is a zombie")
		}
	}
}

// A signal that ends the process does so, although it is its namespace's init.
func TestPauseExits(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		dir := t.TempDir()
		pins, err := Pin(context.Background(), PinSpec{Dir: dir, PID: true, PauseUID: 7, PauseGID: 7})
		if err != nil {
			t.Fatal(err)
		}
		for _, harmless := range []syscall.Signal{syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGCHLD, syscall.SIGCONT} {
			if err := pins.Pause.Signal(harmless); err != nil {
				t.Error(err)
			}
		}
		if time.Sleep(20 * time.Millisecond); !pins.Pause.Alive() {
			t.Error("the pause process ended by a signal that it should ignore")
		}
		if err := pins.Pause.Signal(sig); err != nil {
			t.Error(err)
		}
		mustBeCollected(t, pins.Pause.PID)
		mustUnpin(t, dir)
	}
}

// checkPause looks at what the pause process has: nothing.
func checkPause(t *testing.T, pins Pins, uid, gid uint32) {
	t.Helper()
	pid := pins.Pause.PID
	p := "/proc/" + strconv.Itoa(pid)
	have := status(t, pid)
	none, four := strings.Repeat("0", 16), func(id uint32) string { return strings.TrimSpace(strings.Repeat(fmt.Sprint(id, " "), 4)) }
	for name, want := range map[string]string{
		"Name": "pause", "Uid": four(uid), "Gid": four(gid), "Groups": "", "Threads": "1",
		"CapInh": none, "CapPrm": none, "CapEff": none, "CapBnd": none, "CapAmb": none,
		"NoNewPrivs": "1", "Seccomp": "2", "Seccomp_filters": "1",
	} {
		if have[name] != want {
			t.Errorf("%s of the pause process is %q, want %q", name, have[name], want)
		}
	}
	t.Logf("RSS %s", have["VmRSS"])
	for _, dir := range []string{"/fd", "/root", "/cwd"} {
		if entries, err := os.ReadDir(p + dir); err != nil || len(entries) != 0 {
			t.Errorf("%s of the pause process has %v, %v", dir, entries, err)
		}
	}
	for _, path := range []string{"/root/../etc/passwd", "/root/../../../etc/passwd", "/cwd/../etc/passwd"} {
		if _, err := os.Stat(p + path); err == nil {
			t.Errorf("%s of the pause process is visible", path)
		}
	}
	if err := os.WriteFile(p+"/root/new-file", nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("the pause process's root is writable: %v", err)
	}
	if mounts, err := os.ReadFile(p + "/mountinfo"); err != nil || strings.Count(string(mounts), "\n") != 1 {
		t.Errorf("mounts of the pause process, %v:\n%s", err, mounts)
	}
	if env, _ := os.ReadFile(p + "/environ"); len(env) != 0 {
		t.Errorf("the pause process has an environment: %q", env)
	}
	// Who may open it cannot write to it.
	if f, err := os.OpenFile(p+"/exe", os.O_WRONLY, 0); err == nil {
		if _, err := f.WriteAt([]byte("x"), 0); err == nil {
			t.Error("the program of the pause process can be changed")
		}
		f.Close()
	}
	if st, err := proc.ReadStat(pid); err != nil || st.Session != pid {
		t.Errorf("the pause process is not in a session of its own: %+v, %v", st, err)
	}
	checkPauseNamespaces(t, pins)
}

// checkPauseNamespaces: the pause process is in the pod's namespaces or in its own, in
// none of ours.
func checkPauseNamespaces(t *testing.T, pins Pins) {
	t.Helper()
	theirs := fmt.Sprintf("/proc/%d/ns/", pins.Pause.PID)
	for name, pin := range map[string]string{"net": pins.Net, "ipc": pins.IPC, "uts": pins.UTS, "mnt": "", "cgroup": "", "pid": pins.PID} {
		ns := inode(t, theirs+name)
		if ns == inode(t, "/proc/self/ns/"+name) {
			t.Errorf("the pause process is in our %s namespace", name)
		}
		if pin != "" && ns != inode(t, pin) {
			t.Errorf("the pause process is not in the pod's %s namespace", name)
		}
	}
}

// checkReaping leaves an orphan in the namespace and waits until it is collected.
func checkReaping(t *testing.T, pidNS string) {
	t.Helper()
	out, err := startIn(pidNS, "sh", "-c", "(exec sleep 0.05) & exit 0").CombinedOutput()
	if err != nil {
		t.Fatalf("run in the PID namespace: %v: %s", err, out)
	}
	pin := inode(t, pidNS)
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		n := 0
		entries, _ := os.ReadDir("/proc")
		for _, e := range entries {
			var st unix.Stat_t
			if _, err := strconv.Atoi(e.Name()); err == nil && unix.Stat("/proc/"+e.Name()+"/ns/pid", &st) == nil && st.Ino == pin {
				n++
			} else if b, _ := os.ReadFile("/proc/" + e.Name() + "/stat"); strings.Contains(string(b), "(sleep) Z") {
				n++
			}
		}
		if n == 1 { // the pause process
			return
		}
		if time.Now().After(end) {
			t.Errorf("%d processes in the namespace, want the pause process alone: orphans are not collected", n)
			return
		}
	}
}

func TestPauseFailures(t *testing.T) {
	dir := t.TempDir()
	before := nsMounts(t)
	for name, spec := range map[string]PinSpec{
		"an ID that is not mapped": {Dir: dir, PID: true, PauseUID: 4_000_000_000},
		"in a namespace of its own": {Dir: dir, PID: true, PauseUID: 10, UserNS: &IDMaps{
			UIDs: []idmap.Map{{Container: 0, Host: 1000, Size: 10}}, GIDs: []idmap.Map{{Container: 0, Host: 1000, Size: 10}},
		}},
	} {
		_, err := Pin(context.Background(), spec)
		if !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "setresuid") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := nsMounts(t); n != before {
		t.Errorf("%d pins are left", n-before)
	}
	if left := children(t); len(left) != 0 {
		t.Errorf("processes are left: %v", left)
	}
}

// children returns the processes below the test that stay: one that has ended is collected by
// a goroutine, a moment later (reapLater).
func children(t *testing.T) []string {
	t.Helper()
	var out []string
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		out = nil
		tasks, _ := filepath.Glob("/proc/self/task/*/children")
		for _, f := range tasks {
			b, _ := os.ReadFile(f)
			for _, pid := range strings.Fields(string(b)) {
				cmd, _ := os.ReadFile("/proc/" + pid + "/cmdline")
				out = append(out, pid+" "+string(cmd))
			}
		}
		if len(out) == 0 || time.Now().After(deadline) {
			return out
		}
	}
}

// initOf returns the first process of the pinned PID namespace.
func initOf(t *testing.T, pidNS string) int {
	t.Helper()
	pin := inode(t, pidNS)
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		var st unix.Stat_t
		pid, err := strconv.Atoi(e.Name())
		if err == nil && unix.Stat("/proc/"+e.Name()+"/ns/pid", &st) == nil && st.Ino == pin && isInit(pid) {
			return pid
		}
	}
	t.Fatal("no process in the PID namespace")
	return 0
}

// TestPauseSurvivesServer starts a pause process from a process that is then killed.
func TestPauseSurvivesServer(t *testing.T) {
	if dir := os.Getenv("PAUSE_DIR"); dir != "" { // that process
		_, err := Pin(context.Background(), PinSpec{Dir: dir, PID: true})
		fmt.Println("started", err)
		select {}
	}
	dir := t.TempDir()
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestPauseSurvivesServer$")
	cmd.Env = append(os.Environ(), "PAUSE_DIR="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer mustUnpin(t, dir)
	line := make([]byte, 200)
	n, _ := out.Read(line)
	if string(line[:n]) != "started <nil>\n" {
		t.Errorf("the server said %q", line[:n])
	}
	_ = cmd.Process.Signal(syscall.SIGKILL)
	_ = cmd.Wait()
	checkReaping(t, filepath.Join(dir, "pid"))
	// The tests are the init that the orphan falls to.
	init := initOf(t, filepath.Join(dir, "pid"))
	mustUnpin(t, dir)
	if _, err := unix.Wait4(init, nil, 0, nil); err != nil {
		t.Errorf("wait for the orphaned pause process: %v", err)
	}
}

// TestPauseOfAnEarlierServer: pods that have catatonit, or our own binary, as their
// pause process keep it, and Unpin ends it.
func TestPauseOfAnEarlierServer(t *testing.T) {
	dir := t.TempDir()
	old := exec.Command("/proc/self/exe", pauseArg)
	old.Env = []string{}
	old.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID, Setsid: true}
	if err := old.Start(); err != nil {
		t.Fatal(err)
	}
	if err := bind(fmt.Sprintf("/proc/%d/ns/pid", old.Process.Pid), filepath.Join(dir, "pid")); err != nil {
		t.Fatal(err)
	}
	if out, err := startIn(filepath.Join(dir, "pid"), "true").CombinedOutput(); err != nil {
		t.Errorf("run in the PID namespace: %v: %s", err, out)
	}
	mustUnpin(t, dir)
	if err := old.Wait(); err == nil || old.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("the pause process: %v", err)
	}
}
