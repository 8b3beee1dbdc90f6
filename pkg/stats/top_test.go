package stats

import (
	"os/exec"
	"runtime"
	"strings"
	"testing"
)

// TestCommandLineIsBounded: what a process has as its arguments is not read to its end: a
// container chooses how much it is.
func TestCommandLineIsBounded(t *testing.T) {
	args := []string{"-c", "echo; read x"}
	for range 15 {
		args = append(args, strings.Repeat("x", 100<<10))
	}
	cmd := exec.Command("sh", args...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		in.Close()
		_ = cmd.Wait()
	}()
	if _, err := out.Read(make([]byte, 1)); err != nil { // it has its arguments by then
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	line := commandLine(cmd.Process.Pid)
	runtime.ReadMemStats(&after)
	if len(line) != maxCommand || !strings.HasPrefix(line, "sh -c echo; read x xxx") {
		t.Errorf("%d bytes: %.40q", len(line), line)
	}
	if took := after.TotalAlloc - before.TotalAlloc; took > 1<<20 {
		t.Errorf("to read a command line of 1.5 MiB takes %d bytes of memory", took)
	}
}
