package initproc

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The init process in these tests is the test binary, which gets orphans as a container's
// first process does.
func TestMain(m *testing.M) {
	if os.Getenv("TEST_INIT") == "" {
		os.Exit(m.Run())
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		panic(err)
	}
	os.Exit(Main(os.Args[1:]))
}

func initOf(args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), "TEST_INIT=1")
	cmd.WaitDelay = 20 * time.Second
	return cmd
}

func TestExitCode(t *testing.T) {
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	broken := filepath.Join(dir, "broken")
	for file, mode := range map[string]os.FileMode{plain: 0o644, broken: 0o755} {
		if err := os.WriteFile(file, []byte("text"), mode); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		args []string
		want int
	}{
		"success":        {[]string{"true"}, 0},
		"its own":        {[]string{"sh", "-c", "exit 7"}, 7},
		"by a signal":    {[]string{"sh", "-c", "kill -TERM $$"}, 128 + int(unix.SIGTERM)},
		"no command":     {nil, 127},
		"not there":      {[]string{"/no/such"}, 127},
		"not in PATH":    {[]string{"no-such-command"}, 127},
		"not executable": {[]string{plain}, 126},
		"no program":     {[]string{broken}, 126},
		"a directory":    {[]string{dir}, 126},
	} {
		cmd := initOf(c.args...)
		_ = cmd.Run()
		if got := cmd.ProcessState.ExitCode(); got != c.want {
			t.Errorf("%s: exit code %d, want %d", name, got, c.want)
		}
	}
}

// TestSignals: the command gets what is sent to init, and init ends as the command does.
func TestSignals(t *testing.T) {
	cmd := initOf("sh", "-c", "trap 'echo hup' HUP; trap 'echo term; exit 5' TERM; echo ready; while :; do sleep 0.01; done")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for _, step := range []struct {
		line string
		then os.Signal
	}{{"ready", unix.SIGHUP}, {"hup", unix.SIGTERM}, {"term", nil}} {
		if !lines.Scan() || lines.Text() != step.line {
			t.Fatalf("%q, want %q", lines.Text(), step.line)
		}
		if step.then == nil {
			continue
		}
		if err := cmd.Process.Signal(step.then); err != nil {
			t.Fatal(err)
		}
	}
	_ = cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != 5 {
		t.Errorf("exit code %d, want 5", got)
	}
}

// TestOrphans: what the command leaves behind does not stay a zombie.
func TestOrphans(t *testing.T) {
	const script = `(sleep 0.01 &); (true &)
i=0; while [ $i -lt 1000 ]; do i=$((i+1)); sleep 0.01; test "$(cat /proc/$PPID/task/*/children)" = "$$ " && echo alone && exit; done
cat /proc/$PPID/task/*/children`
	var out bytes.Buffer
	cmd := initOf("sh", "-c", script)
	cmd.Stdout = &out
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(out.String()); got != "alone" {
		t.Errorf("children of init: %q", got)
	}
}
