package proc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// spare leaves the process that many descriptors until the test ends.
func spare(t *testing.T, n uint64) {
	t.Helper()
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	lowest := uint64(f.Fd()) // all below it are in use
	f.Close()
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: lowest + n, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &old) })
}

// TestNoDescriptors: a process that cannot be looked at for want of descriptors is not taken
// for one that has ended: its container would be cleaned up.
func TestNoDescriptors(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	id, err := Identify(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := id.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) { // the poller has what it needs
		t.Fatal(err)
	}
	for n := range uint64(2) {
		t.Run(fmt.Sprintf("%d spare", n), func(t *testing.T) {
			spare(t, n)
			if id.Ending() {
				t.Error("it is about to end")
			}
			if err := id.Wait(t.Context()); !errors.Is(err, unix.EMFILE) {
				t.Errorf("the wait for its end is over: %v", err)
			}
			if err := id.Signal(unix.SIGCONT); !errors.Is(err, unix.EMFILE) {
				t.Errorf("a signal: %v", err)
			}
		})
	}
}
