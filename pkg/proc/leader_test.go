package proc

import (
	"context"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

func init() {
	if os.Getenv("SUBPOD_TEST_LEADER_ENDS") == "" {
		return
	}
	// The first thread, which runs this, ends alone; the others stay.
	runtime.LockOSThread()
	go time.Sleep(time.Hour)
	_, _, _ = syscall.RawSyscall(syscall.SYS_EXIT, 0, 0, 0)
}

// A process lives as long as one of its threads does: else a container would be out of
// reach by the end of its first thread.
func TestFirstThreadEnds(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "SUBPOD_TEST_LEADER_ENDS=1")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = cmd.Process.Kill(), cmd.Wait() }()
	id, err := Identify(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	for {
		st, err := ReadStat(id.PID)
		if err != nil {
			t.Fatal(err)
		}
		if st.State == 'Z' {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if !id.Alive() {
		t.Error("not alive although it has threads")
	}
	dir := Dir(id.PID)
	if !strings.Contains(dir, "/task/") {
		t.Errorf("its directory is %s, want that of a thread", dir)
	}
	if _, err := os.Stat(dir + "/root/."); err != nil {
		t.Errorf("the root of a living thread: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := id.Wait(ctx); err == nil {
		t.Error("Wait says that it has ended")
	}
	if err := id.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := id.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if id.Alive() {
		t.Error("alive as a zombie without threads")
	}
}
