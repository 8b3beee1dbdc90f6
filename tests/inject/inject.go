// Package inject breaks a running process at a chosen one of its system calls:
// it kills it there, or lets that one call fail. The process under test is the
// product as it is shipped: it knows nothing of this.
//
// Only calls with an effect outside of the process are counted: those that make,
// change or remove files, mounts, namespaces, processes and network objects. So
// "before and after every step" means every such call.
package inject

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Action is what happens to the call.
type Action int

// Watch only counts, Kill ends the process at the entry of the call (which has no
// effect then), Fail lets the call return an error without an effect.
const (
	Watch Action = iota
	Kill
	Fail
)

func (a Action) String() string { return [...]string{"watched", "killed", "failed"}[a] }

// Plan says which call to break, counted from 1, and how.
type Plan struct {
	At     int
	Action Action
}

// Report is what happened.
type Report struct {
	Calls int    // with an effect, as far as they were counted
	Hit   string // the call that was broken, "" when there were fewer
}

// Injection is one process under observation.
type Injection struct {
	pid  int
	plan Plan
	stop atomic.Bool
	done chan struct{}

	mu     sync.Mutex
	report Report
	err    error

	threads map[int]*thread // of the tracer's thread alone
}

type thread struct {
	errno unix.Errno // what the call in progress is to return, 0: what it returns
}

// Attach observes all threads of the process from now on. Who is also its parent does not
// wait for it before Stop: a wait takes the stops of a traced child, too, whichever thread
// traces it, and the tracer would never see them.
func Attach(pid int, plan Plan) (*Injection, error) {
	i := &Injection{pid: pid, plan: plan, done: make(chan struct{}), threads: map[int]*thread{}}
	attached := make(chan error, 1)
	go func() {
		// ptrace(2) knows threads, not processes: this one is the tracer.
		runtime.LockOSThread() // and ends with the goroutine
		defer close(i.done)
		err := i.attach()
		attached <- err
		if err == nil {
			err = i.trace()
		}
		i.mu.Lock()
		i.err = err
		i.mu.Unlock()
	}()
	if err := <-attached; err != nil {
		<-i.done
		return nil, fmt.Errorf("trace process %d: %w", pid, err)
	}
	return i, nil
}

// Stop lets go of the process, if it lives, and returns what happened.
func (i *Injection) Stop() (Report, error) {
	i.stop.Store(true)
	// The tracer waits for the process to do something. Go programs ignore this
	// signal (the runtime uses it for itself).
	_ = unix.Kill(i.pid, unix.SIGURG)
	<-i.done
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.report, i.err
}

// Hit returns the call that was broken so far, "" for none.
func (i *Injection) Hit() string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.report.Hit
}

const options = unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACECLONE

func (i *Injection) attach() error {
	for found := true; found; {
		found = false
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", i.pid))
		if err != nil {
			return err
		}
		for _, task := range tasks {
			tid, err := strconv.Atoi(task.Name())
			if err != nil || i.threads[tid] != nil {
				continue
			}
			err = ptrace(unix.PTRACE_SEIZE, tid, 0, options)
			if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EPERM) && len(i.threads) > 0 {
				continue // has just ended, or came with its parent thread
			}
			if err != nil {
				return err
			}
			found = true
			i.threads[tid] = &thread{}
			if err := ptrace(unix.PTRACE_INTERRUPT, tid, 0, 0); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
	}
	return nil
}

// trace handles the stops of the threads until the process has ended or Stop is
// called.
func (i *Injection) trace() error {
	stopping := false
	// This thread may have other children: it is not ECHILD that ends the loop.
	for len(i.threads) > 0 {
		if i.stop.Load() && !stopping {
			stopping = true
			for tid := range i.threads {
				_ = ptrace(unix.PTRACE_INTERRUPT, tid, 0, 0)
			}
		}
		var status unix.WaitStatus
		tid, err := unix.Wait4(-1, &status, unix.WALL|unix.WNOTHREAD, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ECHILD):
			return nil // all threads have ended or are let go
		case err != nil:
			return err
		}
		if !status.Stopped() {
			delete(i.threads, tid)
			continue
		}
		t := i.threads[tid]
		if t == nil {
			t = &thread{}
			i.threads[tid] = t
		}
		i.resume(tid, t, status, stopping || i.stop.Load())
	}
	return nil
}

func (i *Injection) resume(tid int, t *thread, status unix.WaitStatus, letGo bool) {
	signal := status.StopSignal()
	deliver := 0
	switch {
	case signal == unix.SIGTRAP|0x80: // of PTRACE_O_TRACESYSGOOD
		i.syscallStop(tid, t)
	case int(status)>>16 != 0: // an event of ptrace's own, or a group stop
	default:
		deliver = int(signal)
	}
	// A call that must fail is seen through to its exit.
	if letGo && t.errno == 0 {
		if ptrace(unix.PTRACE_DETACH, tid, 0, uintptr(deliver)) == nil {
			delete(i.threads, tid)
			return
		}
	}
	_ = ptrace(unix.PTRACE_SYSCALL, tid, 0, uintptr(deliver)) // ESRCH: it was killed
}

func (i *Injection) syscallStop(tid int, t *thread) {
	entry, ok := syscallInfo(tid)
	if !ok {
		return
	}
	if entry == nil { // exit
		if t.errno != 0 {
			_ = setResult(tid, t.errno)
			t.errno = 0
		}
		return
	}
	words, errno := i.effect(entry)
	if words == "" {
		return
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.report.Calls++
	if i.report.Calls != i.plan.At {
		return
	}
	switch i.plan.Action {
	case Kill:
		i.report.Hit = words
		_ = unix.Kill(i.pid, unix.SIGKILL)
	case Fail:
		i.report.Hit = words + " = " + unix.ErrnoName(errno)
		if skipCall(tid) == nil {
			t.errno = errno
		}
	}
}

var identifier = regexp.MustCompile(`[0-9a-f]{64}`)

// tidy makes the words of two runs the same.
func tidy(s string) string { return identifier.ReplaceAllString(s, "ID") }

func ptrace(request, tid int, addr, data uintptr) error {
	if _, _, errno := unix.Syscall6(unix.SYS_PTRACE, uintptr(request), uintptr(tid), addr, data, 0, 0); errno != 0 {
		return errno
	}
	return nil
}
