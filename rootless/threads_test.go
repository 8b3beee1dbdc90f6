package rootless

import (
	"os"
	"runtime"
	"testing"
)

// The threads are there afterwards, and a second call finds them there.
func TestKeepThreads(t *testing.T) {
	threads := func() int {
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		return len(tasks)
	}
	keepThreads()
	n := threads()
	if least := runtime.GOMAXPROCS(0) + spareThreads; n < least {
		t.Errorf("%d threads, want at least %d", n, least)
	}
	keepThreads()
	if again := threads(); again > n+2 { // the runtime's own
		t.Errorf("%d threads, then %d", n, again)
	}
}
