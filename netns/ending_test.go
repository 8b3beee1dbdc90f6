package netns

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/subpod/subpod/pkg/proc"
)

// TestEnding: the init of a PID namespace whose last process nobody waits for is alive after
// it was killed, and ends nevertheless, as a pause process may.
func TestEnding(t *testing.T) {
	first := exec.Command("sleep", "1000")
	first.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWPID,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	id, err := proc.Identify(first.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	// nsenter waits for a process that it has started in there.
	pid := strconv.Itoa(id.PID)
	other := exec.Command("nsenter", "--user", "--preserve-credentials", "--pid", "--target", pid, "sleep", "1000")
	startErr := other.Start()
	defer func() {
		_ = first.Process.Kill()
		if startErr == nil {
			_, _ = other.Process.Signal(syscall.SIGCONT), other.Wait()
		}
		_ = first.Wait()
	}()
	if startErr != nil {
		t.Fatal(startErr)
	}
	inside := func() int {
		text, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(other.Process.Pid), "task", strconv.Itoa(other.Process.Pid), "children"))
		n, _ := strconv.Atoi(strings.TrimSpace(string(text)))
		return n
	}
	until(t, func() bool { return inside() != 0 })
	if id.Ending() {
		t.Error("it ends before it was killed")
	}
	if err := other.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	until(t, func() bool { st, err := proc.ReadStat(other.Process.Pid); return err == nil && st.State == 'T' })
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	until(t, func() bool { st, err := proc.ReadStat(inside()); return err == nil && st.Ended() })
	if !id.Alive() || !id.Ending() {
		t.Errorf("alive %v, ending %v, while it waits; want both", id.Alive(), id.Ending())
	}
	if err := other.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := first.Wait(); err == nil || id.Alive() || !id.Ending() {
		t.Errorf("after its end: %v, alive %v, ending %v", err, id.Alive(), id.Ending())
	}
}

func until(t *testing.T, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it did not come to that in a minute")
		}
	}
}
