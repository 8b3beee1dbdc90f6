package rootless

import (
	"runtime"
	"sync"
)

// spareThreads are for system calls that block.
const spareThreads = 6

// keepThreads has the Go runtime start threads that it then keeps idle: as many as it
// can use at once for Go code, and spare ones. Where the kernel allows no more
// processes (RLIMIT_NPROC, pids.max) the runtime ends a program that needs one thread
// more: for the parent, the child or the supervisor that is the end of the node.
func keepThreads() {
	var started, ended sync.WaitGroup
	release := make(chan struct{})
	for range runtime.GOMAXPROCS(0) + spareThreads {
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

// lockThread keeps the calling goroutine's thread alive for the whole life of
// the process: children with a parent death signal are tied to it.
func lockThread() { runtime.LockOSThread() }
