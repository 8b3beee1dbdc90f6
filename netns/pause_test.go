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

	"github.com/subpod/subpod/pkg/proc"
	"golang.org/x/sys/unix"
)

// pauses returns the commands to test: catatonit where it is installed, and our
// own binary (the test's).
func pauses(t *testing.T) map[string][]string {
	t.Helper()
	own := filepath.Join(t.TempDir(), "own")
	b, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = os.WriteFile(own, b, 0o755)
	}
	if err == nil {
		err = checkStatic(own)
	}
	if err != nil {
		t.Fatalf("run these tests with CGO_ENABLED=0: %v", err)
	}
	out := map[string][]string{"own": {own, pauseArg}}
	if path, err := exec.LookPath("catatonit"); err == nil {
		out["catatonit"] = []string{path, "-P"}
	}
	return out
}

// startIn runs a command as a new child in the pinned PID namespace, through
// nsenter(1), which forks it there.
func startIn(pidNS string, argv ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"--pid=" + pidNS, "--"}, argv...)...)
}

func rss(t *testing.T, pid int) string {
	b, err := os.ReadFile(fmt.Sprint("/proc/", pid, "/status"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			return strings.TrimSpace(v)
		}
	}
	return "?"
}

func TestPause(t *testing.T) {
	for name, argv := range pauses(t) {
		t.Run(name, func(t *testing.T) {
			before := nsMounts(t)
			dir := t.TempDir()
			id, path, err := StartPause(context.Background(), PauseSpec{Dir: dir, Argv: argv})
			if err != nil {
				t.Fatal(err)
			}
			defer mustUnpin(t, dir)
			if path != filepath.Join(dir, "pid") || !id.Alive() {
				t.Fatalf("pin %s, pause process %+v alive %v", path, id, id.Alive())
			}
			checkPause(t, id)
			checkReaping(t, path)
			time.Sleep(50 * time.Millisecond)
			t.Logf("RSS of the pause process: %s", rss(t, id.PID))
			mustUnpin(t, dir)
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			if err := id.Wait(ctx); err != nil {
				t.Errorf("the pause process lives on after Unpin: %v", err)
			}
			for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
				if _, err := proc.Identify(id.PID); errors.Is(err, proc.ErrGone) {
					break
				}
				if time.Now().After(end) {
					t.Error("the pause process was not collected: it is a zombie")
					break
				}
			}
			if n := nsMounts(t); n != before {
				t.Errorf("%d pins are left", n-before)
			}
		})
	}
}

// checkPause looks at what the pause process has of ours.
func checkPause(t *testing.T, id proc.ID) {
	t.Helper()
	p := "/proc/" + strconv.Itoa(id.PID)
	fds, err := os.ReadDir(p + "/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		to, _ := os.Readlink(p + "/fd/" + fd.Name())
		// A runtime makes its own pipes and pollers; files and sockets are ours.
		if to != "/dev/null" && !strings.HasPrefix(to, "anon_inode:") && !strings.HasPrefix(to, "pipe:") {
			t.Errorf("the pause process holds file %s → %s", fd.Name(), to)
		}
	}
	if env, _ := os.ReadFile(p + "/environ"); len(env) != 0 {
		t.Errorf("the pause process has an environment: %q", env)
	}
	if st, err := os.ReadFile(p + "/stat"); err != nil || strings.Fields(string(st[strings.LastIndexByte(string(st), ')'):]))[3] != strconv.Itoa(id.PID) {
		t.Errorf("the pause process is not in a session of its own: %s", st)
	}
	// Its root shows the directory of its binary and nothing above.
	for _, path := range []string{"/root/proc/self", "/root/etc/passwd", "/root/../etc/passwd", "/root/../../../etc/passwd", "/cwd/../etc/passwd"} {
		if _, err := os.Stat(p + path); err == nil {
			t.Errorf("%s of the pause process is visible", path)
		}
	}
	if err := os.WriteFile(p+"/root/new-file", nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("the pause process's root is writable: %v", err)
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
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
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

func TestKeeperFailures(t *testing.T) {
	dir := t.TempDir()
	ctx := context.Background()
	script := filepath.Join(dir, "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, argv := range [][]string{{filepath.Join(dir, "missing")}, {script}} {
		if _, _, err := StartPause(ctx, PauseSpec{Dir: dir, Argv: argv}); err == nil {
			t.Errorf("pause process %v was started", argv)
		}
	}
	for _, argv := range pauses(t) {
		if _, _, err := StartPause(ctx, PauseSpec{Dir: filepath.Join(dir, "missing"), Argv: argv}); err == nil {
			t.Error("a pause process was started without a place for its pin")
		}
	}
	// None of them is left running.
	if left := children(t); len(left) != 0 {
		t.Errorf("processes are left: %v", left)
	}
}

// children returns the commands of our child processes.
func children(t *testing.T) []string {
	t.Helper()
	var out []string
	tasks, _ := filepath.Glob("/proc/self/task/*/children")
	for _, f := range tasks {
		b, _ := os.ReadFile(f)
		for _, pid := range strings.Fields(string(b)) {
			cmd, _ := os.ReadFile("/proc/" + pid + "/cmdline")
			out = append(out, pid+" "+string(cmd))
		}
	}
	return out
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
		_, _, err := StartPause(context.Background(), PauseSpec{Dir: dir, Argv: strings.Fields(os.Getenv("PAUSE_ARGV"))})
		fmt.Println("started", err)
		select {}
	}
	for name, argv := range pauses(t) {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			cmd := exec.Command("/proc/self/exe", "-test.run=^TestPauseSurvivesServer$")
			cmd.Env = append(os.Environ(), "PAUSE_DIR="+dir, "PAUSE_ARGV="+strings.Join(argv, " "))
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
		})
	}
}
