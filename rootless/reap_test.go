package rootless

import (
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestReaper: the node's first process gets the results of the programs that it runs
// itself, and collects everybody else's orphans.
func TestReaper(t *testing.T) {
	out, err := exec.Command("/proc/self/exe", "part-reaper").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// reaperPart reaps as the first process of a node does, while it runs programs and
// is given orphans.
func reaperPart([]string) int {
	fail := func(what string, err error) int {
		fmt.Fprintln(os.Stderr, what+":", err)
		return 1
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fail("become a reaper", err)
	}
	reapOrphans(func(int, unix.WaitStatus) {})
	for i := range 300 {
		// The shell ends at once, and what it leaves a little later.
		if err := exec.Command("sh", "-c", "setsid sleep 0.01 & setsid sleep 0.02 &").Run(); err != nil {
			return fail(fmt.Sprintf("program %d", i), err)
		}
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		err := unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if err == unix.ECHILD {
			return 0 // there is no child left
		}
		if time.Now().After(end) {
			return fail("orphans are left", err)
		}
	}
}
