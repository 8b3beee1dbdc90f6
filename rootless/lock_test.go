package rootless

import (
	"bufio"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// lockPart locks directories until its standard input ends. Arguments: DIR….
func lockPart(args []string) int {
	locks, err := lockDirs(slog.New(slog.DiscardHandler), args...)
	if err == nil {
		err = locks.writePID()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println("locked")
	os.Stdin.Read(make([]byte, 1))
	return 0
}

// lockElsewhere locks directories in another process, as a daemon does that has not
// come further yet, and returns its PID.
func lockElsewhere(t *testing.T, dirs ...string) (pid int, kill func()) {
	t.Helper()
	cmd := exec.Command(executable(t), append([]string{"part-lock"}, dirs...)...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	kill = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		in.Close()
	})
	t.Cleanup(kill)
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "locked\n" {
		t.Fatalf("lock %v: %q, %v", dirs, line, err)
	}
	return cmd.Process.Pid, kill
}

// isHeld fails the test unless err is ErrHeld and names the process.
func isHeld(t *testing.T, what string, err error, pid int) {
	t.Helper()
	if !errors.Is(err, ErrHeld) || !strings.Contains(err.Error(), fmt.Sprintf("PID %d", pid)) {
		t.Errorf("%s: %v, want ErrHeld with PID %d", what, err, pid)
	}
}

// tree lists the files below directories with sizes, times and modes.
func tree(t *testing.T, dirs ...string) string {
	t.Helper()
	var out strings.Builder
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			st, err := e.Info()
			if err != nil {
				return err
			}
			fmt.Fprintln(&out, path, st.Mode(), st.Size(), st.ModTime())
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return out.String()
}

// A second daemon on the same run directory, the same data directory, or both, is
// refused with the PID of the first, which goes on undisturbed; so is a Reset that
// names one directory of it and another one.
func TestHeld(t *testing.T) {
	d := startDaemon(t, testConfig(t))
	r := d.server(0)
	d.eventually("it is ready", func() bool { return wasReady(d.RunDir, time.Time{}) })
	otherRun, otherData := testDirs(t)
	before := tree(t, d.RunDir, d.DataDir)
	for _, c := range []struct{ name, run, data string }{
		{"same directories", d.RunDir, d.DataDir},
		{"same data directory", otherRun, d.DataDir},
		{"same run directory", d.RunDir, otherData},
		{"its data directory by another name", otherRun, link(t, d.DataDir)},
	} {
		second := d.Config
		second.RunDir, second.DataDir, second.Binds = c.run, c.data, []Bind{}
		isHeld(t, c.name, Run(t.Context(), second), d.cmd.Process.Pid)
		if c.name == "same directories" {
			continue
		}
		_, removed, err := Reset(t.Context(), c.run, c.data, time.Second)
		isHeld(t, "reset with "+c.name, err, d.cmd.Process.Pid)
		if removed != nil {
			t.Errorf("reset with %s has removed %v", c.name, removed)
		}
	}
	if after := tree(t, d.RunDir, d.DataDir); after != before {
		t.Errorf("the first daemon's files were\n%sand are\n%s", before, after)
	}
	if n := d.load(); n.Identity != r.Node.Identity || hostPID(t, n, r.PID) == 0 {
		t.Error("the first daemon's server or node is another one")
	}
}

func link(t *testing.T, dir string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, name); err != nil {
		t.Fatal(err)
	}
	return name
}

// TestResetOfOthers: a directory that no daemon has had, named by mistake, is not removed.
func TestResetOfOthers(t *testing.T) {
	for _, c := range []struct {
		has  []string
		ours bool
	}{
		{nil, true}, {[]string{"a"}, false}, {[]string{"a", fileLock}, true}, {[]string{"state.db", "storage"}, true},
		{[]string{"subpod.sock"}, true}, {[]string{"volumes", "secrets"}, true}, {[]string{"volumes", "a"}, false}, {[]string{"storage"}, false},
	} {
		for _, isData := range []bool{true, false} {
			dir, run, data := t.TempDir(), t.TempDir(), t.TempDir()
			for _, name := range c.has {
				if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if isData {
				data = dir
			} else {
				run = dir
			}
			_, removed, err := Reset(t.Context(), run, data, time.Second)
			if entries, _ := os.ReadDir(dir); c.ours && (err != nil || len(entries) > 0) || !c.ours && (!errors.Is(err, ErrNotOurs) || len(removed) > 0 || len(entries) != len(c.has)) {
				t.Errorf("with %q: removed %q, left %v, %v", c.has, removed, entries, err)
			}
		}
	}
}

// While a Reset removes the directories, no daemon starts; while a daemon starts, a
// Reset removes nothing. Nothing is waited for that does not end.
func TestResetAndStart(t *testing.T) {
	c := testConfig(t)
	if err := os.MkdirAll(c.RunDir, 0o700); err != nil {
		t.Fatal(err)
	}
	pid, kill := lockElsewhere(t, c.DataDir)
	isHeld(t, "a daemon", Run(t.Context(), c), pid)
	_, removed, err := Reset(t.Context(), c.RunDir, c.DataDir, time.Second)
	isHeld(t, "a reset", err, pid)
	if _, err := os.Stat(c.Server[0]); err != nil || removed != nil {
		t.Errorf("removed %v; %v", removed, err)
	}
	kill()
	d := startDaemon(t, c) // a lock of a process that was killed is none
	d.server(0)
	stopped, removed, err := Reset(t.Context(), c.RunDir, c.DataDir, 20*time.Second)
	if err != nil || !stopped || len(removed) != 2 {
		t.Errorf("reset of a daemon: stopped %v, removed %v, %v", stopped, removed, err)
	}
	if code := d.wait(); code != 0 {
		t.Errorf("exit code %d of the daemon", code)
	}
	for _, dir := range []string{c.RunDir, c.DataDir} {
		if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", dir, err)
		}
	}
	if stopped, removed, err := Reset(t.Context(), c.RunDir, c.DataDir, time.Second); stopped || removed != nil || err != nil {
		t.Errorf("reset of nothing: stopped %v, removed %v, %v", stopped, removed, err)
	}
}

// Many lock a directory and remove it again, as daemons and resets do: never two at a
// time, and nobody removes what another one has made.
func TestLockRemoved(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	log := slog.New(slog.DiscardHandler)
	var owners, locked atomic.Int32
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			for range 300 {
				locks, err := lockDirs(log, dir)
				if errors.Is(err, ErrHeld) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				if owners.Add(1) != 1 {
					t.Error("two have the lock")
				}
				locked.Add(1)
				own := filepath.Join(dir, strconv.Itoa(worker))
				if err := os.WriteFile(own, nil, 0o600); err != nil {
					t.Error(err)
				}
				if _, err := os.Stat(own); err != nil {
					t.Errorf("removed by another: %v", err)
				}
				owners.Add(-1)
				if err := removeLocked(t.Context(), dir, nil); err != nil {
					t.Error(err)
				}
				locks.release()
			}
		})
	}
	wg.Wait()
	if locked.Load() < 10 {
		t.Errorf("only %d had the lock", locked.Load())
	}
}

// The PID in a lock file counts only for who has that file open: after a crash it may
// be another program's.
func TestHolder(t *testing.T) {
	dir := t.TempDir()
	check := func(what string, want int) {
		t.Helper()
		if pid, err := holder(dir); pid != want || err != nil {
			t.Errorf("%s: PID %d, %v, want %d", what, pid, err, want)
		}
	}
	check("never locked", 0)
	innocent := exec.Command("sleep", "1000")
	if err := innocent.Start(); err != nil {
		t.Fatal(err)
	}
	defer innocent.Wait()
	defer innocent.Process.Kill()
	text := []byte(strconv.Itoa(innocent.Process.Pid))
	if err := os.WriteFile(lockFile(dir), text, 0o600); err != nil {
		t.Fatal(err)
	}
	check("not locked, but names a process that lives", 0)
	pid, kill := lockElsewhere(t, dir)
	check("locked", pid)
	if err := os.WriteFile(lockFile(dir), text, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := holder(dir); err == nil {
		t.Errorf("locked by PID %d, names PID %d, which has nothing to do with it: PID %d", pid, innocent.Process.Pid, got)
	}
	if stopped, err := Stop(t.Context(), dir); err == nil || stopped {
		t.Errorf("Stop of an owner that cannot be identified: %v, %v", stopped, err)
	}
	if err := unix.Kill(innocent.Process.Pid, 0); err != nil {
		t.Errorf("the innocent process: %v", err)
	}
	kill()
	check("its owner was killed", 0)
}
