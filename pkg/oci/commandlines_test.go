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
	return started(t, exec.Command("sh", append([]string{"-c", waitScript, "sh"}, args...)...))
}

// waitScript writes a line, and goes on until its standard input ends.
const waitScript = "echo; read x"

// started starts what runs waitScript, and returns when it runs: the process has its arguments
// and its environment by then.
func started(t *testing.T, cmd *exec.Cmd) (pid int) {
	t.Helper()
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
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
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
	if err := os.WriteFile(filepath.Join(dir, "init"), []byte(waitScript), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "init")
	cmd.Dir, cmd.Env = dir, env
	return started(t, cmd)
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
// arguments of a runtime's. Those of the runtime itself are all found beside them, also where
// they have been started in a mount namespace of their own.
func TestPretendedHelpersAreBounded(t *testing.T) {
	rt := &runtime{root: "/nowhere"}
	in := func(id string, namespaces uintptr) int {
		cmd := exec.Command("sh", "-c", waitScript, "sh", "--root=/nowhere", "create", id)
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: namespaces}
		return started(t, cmd)
	}
	ours := []int{waiting(t, "--root=/nowhere", "create", "ours")}
	for i := range 3 * maxInside {
		in(fmt.Sprint("id", i), syscall.CLONE_NEWNS|syscall.CLONE_NEWPID)
		if i <= maxInside {
			ours = append(ours, in(fmt.Sprint("ours", i), syscall.CLONE_NEWNS))
		}
	}
	found := rt.helpers(readCommandLines())
	missing := slices.DeleteFunc(slices.Clone(ours), func(pid int) bool { _, ok := found[pid]; return ok })
	if len(missing) > 0 || len(found) != len(ours)+maxInside {
		t.Errorf("%d helpers, the runtime's among them but for %v; want %d", len(found), missing, len(ours)+maxInside)
	}
}
