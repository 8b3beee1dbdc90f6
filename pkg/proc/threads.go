package proc

import (
	"runtime"
	"sync"
)

// KeepThreads has the Go runtime start threads that it then keeps idle: as many as it
// can use at once for Go code, and spare ones for system calls that block. Where the
// kernel allows no more processes (RLIMIT_NPROC, pids.max) the runtime ends a program
// that needs one thread more, and with it what depends on it.
func KeepThreads(spare int) {
	var started, ended sync.WaitGroup
	release := make(chan struct{})
	for range runtime.GOMAXPROCS(0) + spare {
		started.Add(1)
		ended.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread() // without it the thread would end, too
			started.Done()
			<-release
		})
	}
	started.Wait()
	close(release)
	ended.Wait()
}
