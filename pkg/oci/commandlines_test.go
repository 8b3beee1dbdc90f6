package oci

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// waiting starts a process with these arguments that lives until the test ends.
func waiting(t *testing.T, args ...string) (pid int) {
	t.Helper()
	cmd := exec.Command("sh", append([]string{"-c", "read x", "sh"}, args...)...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		_ = cmd.Wait()
	})
	return cmd.Process.Pid
}

// TestCommandLinesAreBounded: a container chooses how many arguments its processes have, and
// how long they are; thousands may share them.
func TestCommandLinesAreBounded(t *testing.T) {
	short, long := waiting(t, "an argument"), waiting(t, strings.Repeat("x", 100<<10))
	many := waiting(t, make([]string, 1000)...)
	table := readCommandLines()
	if !slices.Contains(table.args[short], "an argument") {
		t.Errorf("the arguments of a process: %q", table.args[short])
	}
	for what, pid := range map[string]int{"long": long, "many": many} {
		if n := len(strings.Join(table.args[pid], " ")); n > 0 || table.processTable[pid].StartTime == 0 {
			t.Errorf("of a process with %s arguments, %d bytes are kept", what, n)
		}
	}
}

// TestHelperOfReusedPID: the arguments of a process that has got the PID of one in the table
// are not that one's, and it is not killed for them.
func TestHelperOfReusedPID(t *testing.T) {
	rt := &runtime{root: "/nowhere"}
	pid := waiting(t, "--root=/nowhere", "create", "id")
	table := readCommandLines()
	if _, ok := rt.helpers(table)[pid]; !ok {
		t.Fatal("a helper is not found")
	}
	stat := table.processTable[pid]
	stat.StartTime--
	table.processTable[pid] = stat
	if h, ok := rt.helpers(table)[pid]; ok {
		t.Errorf("another process with the PID is taken for the helper: %+v", h)
	}
}

// inContainer starts a process with the arguments and the environment of runc's part in a
// container, which lives until the test ends.
func inContainer(t *testing.T, env ...string) (pid int) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "init"), []byte("echo; read x"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "init")
	cmd.Dir, cmd.Env = dir, env
	in, inErr := cmd.StdinPipe()
	out, outErr := cmd.StdoutPipe()
	if err := errors.Join(inErr, outErr); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		_ = cmd.Wait()
	})
	if _, err := out.Read(make([]byte, 1)); err != nil { // it has its environment by then
		t.Fatal(err)
	}
	return cmd.Process.Pid
}

// TestEnvironmentIsBounded: a process of a container that has the arguments of runc's part in
// a container chooses what its environment is, also more than the server has memory for.
func TestEnvironmentIsBounded(t *testing.T) {
	rt := &runtime{root: "/nowhere"}
	for what, more := range map[string]int{"runc's": 0, "a long one": 100 << 10} {
		pid := inContainer(t, "_LIBCONTAINER_STATEDIR=/nowhere/id", "X="+strings.Repeat("x", more))
		h, ok := rt.helperOf(pid, []string{"sh", "init"})
		if ok != (more == 0) || ok && h.container != "id" {
			t.Errorf("with %s as its environment: %v, %q", what, ok, h.container)
		}
	}
}

// TestHelperIsOfContainer: a process of a container that names no container, but the
// directory with the state of all, is not taken for an orphan's: it would be deleted.
func TestHelperIsOfContainer(t *testing.T) {
	root := t.TempDir()
	rt := &runtime{name: "crun", root: root}
	e := &Executor{handlers: map[string]*runtime{"crun": rt}}
	for _, id := range []string{"..", ".", "", "/", "a/.."} {
		pid := inContainer(t, "_LIBCONTAINER_STATEDIR="+root+"/"+id)
		table := commandLines{readProcesses(), map[int][]string{pid: {"sh", "init"}}}
		found, _ := e.orphans(t.Context(), table, func(string) bool { return false })
		for id := range found {
			t.Errorf("there is an orphaned container %q", id)
		}
	}
}

// TestPretendedHelpersAreBounded: a container may have any number of processes with the
// arguments of a runtime's. Those of the runtime itself are found beside them.
func TestPretendedHelpersAreBounded(t *testing.T) {
	rt := &runtime{root: "/nowhere"}
	ours := waiting(t, "--root=/nowhere", "create", "ours")
	for i := range 3 * maxInside {
		cmd := exec.Command("sh", "-c", "echo; read x", "sh", "--root=/nowhere", "create", fmt.Sprint("id", i))
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID}
		in, inErr := cmd.StdinPipe()
		out, outErr := cmd.StdoutPipe()
		if err := errors.Join(inErr, outErr, cmd.Start()); err != nil {
			t.Fatal(err)
		}
		defer cmd.Wait()
		defer in.Close()
		if _, err := out.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	found := rt.helpers(readCommandLines())
	if _, ok := found[ours]; !ok || len(found) != 1+maxInside {
		t.Errorf("%d helpers, the runtime's among them: %v; want %d", len(found), ok, 1+maxInside)
	}
}
