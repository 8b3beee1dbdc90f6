package proc

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// fields returns a stat line of a process with the given name, whose fields from 4
// on are their own numbers.
func fields(name string, last int) string {
	line := "17 (" + name + ") S"
	for n := 4; n <= last; n++ {
		line += fmt.Sprintf(" %d", n)
	}
	return line + "\n"
}

func TestParseStat(t *testing.T) {
	want := Stat{
		State: 'S', PPID: 4, Group: 5, Session: 6, Flags: 9,
		MinorFaults: 10, ChildrenMinorFaults: 11, MajorFaults: 12, ChildrenMajorFaults: 13,
		User: 14, System: 15, ChildrenUser: 16, ChildrenSystem: 17, Threads: 20, StartTime: 22, StartStack: 28,
	}
	for _, name := range []string{"sh", "a b", "a)", ") Z 1 (", "))", "(", "", "new\nline", ") S 1 2 3"} {
		if got, err := parseStat([]byte(fields(name, 52))); err != nil || got != want {
			t.Errorf("%q: %+v, %v", name, got, err)
		}
	}
	kernel := strings.Replace(fields("kthreadd", 52), " S 4 5 6 ", " S 0 0 -1 ", 1)
	if got, err := parseStat([]byte(kernel)); err != nil || got.Session != -1 {
		t.Errorf("a session of -1: %+v, %v", got, err)
	}
	for _, bad := range []string{"", "17", "17 (sh", "17 (sh)", fields("sh", 27), strings.Replace(fields("sh", 52), " S ", " SS ", 1),
		strings.Replace(fields("sh", 52), " 22 ", " x ", 1), strings.Replace(fields("sh", 52), " 5 ", " 99999999999999999999 ", 1)} {
		if got, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q was parsed: %+v", bad, got)
		}
	}
}

// A process whose program is named to mislead.
func TestReadStat(t *testing.T) {
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "a) R 1 (b")
	if err := os.Symlink(sleep, program); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if _, err := ReadStat(cmd.Process.Pid); !errors.Is(err, ErrGone) {
			t.Errorf("after its end: %v, want ErrGone", err)
		}
	}()
	s, err := ReadStat(cmd.Process.Pid)
	if err != nil || s.PPID != os.Getpid() || s.Threads != 1 || s.StartTime == 0 || s.Ended() {
		t.Errorf("%+v, %v", s, err)
	}
	pids, err := PIDs()
	if err != nil || !slices.Contains(pids, cmd.Process.Pid) || !slices.Contains(pids, os.Getpid()) {
		t.Errorf("PIDs %v, %v", pids, err)
	}
}

// FuzzParseStat: no content of the file makes the parser panic, and what it returns
// has a state.
func FuzzParseStat(f *testing.F) {
	f.Add([]byte(fields("sh", 52)))
	f.Add([]byte("1 (a) b) S 1 2"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if s, err := parseStat(text); err == nil && s.State == 0 {
			t.Errorf("%q: %+v", text, s)
		}
	})
}
