package proc

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"
	"time"
)

func TestIdentityOutlivesNoProcess(t *testing.T) {
	self, err := Identify(os.Getpid())
	if err != nil || !self.Alive() {
		t.Fatalf("Identify(self) = %v, %v; alive %v", self, err, self.Alive())
	}
	reused := self
	reused.StartTime++
	if reused.Alive() {
		t.Error("an identity with another start time is alive")
	}
	if err := reused.Signal(syscall.SIGTERM); !errors.Is(err, ErrGone) {
		t.Errorf("signal to a reused PID: %v, want ErrGone", err)
	}
}

// The number of a process that has ended may come back as that of a thread.
func TestIdentityOfAThread(t *testing.T) {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil || len(threads) < 2 {
		t.Fatalf("threads %v, %v: want more than one", threads, err)
	}
	// The names are in the order of letters: the process's own may be any of them.
	name := threads[len(threads)-1].Name()
	if name == strconv.Itoa(os.Getpid()) {
		name = threads[0].Name()
	}
	tid, err := strconv.Atoi(name)
	if err != nil || tid == os.Getpid() {
		t.Fatalf("thread %d of process %d: %v", tid, os.Getpid(), err)
	}
	thread, err := Identify(tid)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []ID{{PID: tid, StartTime: 1}, thread} {
		if err := id.Signal(syscall.SIGTERM); !errors.Is(err, ErrGone) {
			t.Errorf("signal to a PID that is a thread's now: %v, want ErrGone", err)
		}
		if err := id.Wait(context.Background()); err != nil {
			t.Errorf("wait for a PID that is a thread's now: %v", err)
		}
	}
}

func TestSignalAndWait(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	id, err := Identify(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := id.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Wait on a living process: %v, want the context's error", err)
	}
	if err := id.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := id.Wait(context.Background()); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if id.Alive() {
		t.Error("alive after it was reaped")
	}
	if err := id.Wait(context.Background()); err != nil {
		t.Errorf("Wait after the end: %v", err)
	}
}
