package proc

import (
	"runtime"
	"sync"
	"sync/atomic"
)

// InParallel calls do for 0 to n-1, on as many processors as there are, and returns when
// all calls have. Reading thousands of processes is the kernel's work, not waiting.
func InParallel(n int, do func(int)) {
	var next atomic.Int64
	var group sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), n) {
		group.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				do(i)
			}
		})
	}
	group.Wait()
}
