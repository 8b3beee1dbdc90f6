package rootless

import (
	"os"
	"os/exec"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// leaderlessPart ends its first thread; others go on.
func leaderlessPart([]string) int {
	for range 100 {
		go func() {
			runtime.LockOSThread()
			if unix.Gettid() == os.Getpid() {
				_, _, _ = unix.Syscall(unix.SYS_EXIT, 0, 0, 0)
			}
			select {}
		}()
	}
	time.Sleep(time.Hour)
	return 0
}

// TestZombies: a child that has ended is told from one that cannot end yet, such as a
// namespace's first process that waits for the others in it: its first thread has ended only.
func TestZombies(t *testing.T) {
	cmd := exec.Command(selfExe, "part-leaderless")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, ended := range []bool{false, true} {
		want := zombie{cmd.Process.Pid, ended}
		deadline := time.Now().Add(10 * time.Second)
		for !slices.Contains(zombies(), want) {
			if time.Now().After(deadline) {
				t.Fatalf("the zombies are %v, want %v", zombies(), want)
			}
			time.Sleep(time.Millisecond)
		}
		_ = cmd.Process.Kill()
	}
	_ = cmd.Wait()
	if found := zombies(); len(found) > 0 {
		t.Errorf("a child that was waited for is among %v", found)
	}
}
