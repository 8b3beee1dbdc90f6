package netns

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// onThread runs f on an OS thread that may change its namespaces, because it
// ends with f. The main thread is never used: /proc/self describes it, and
// every other part of the process relies on that.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// Blocked here, this goroutine keeps the main thread busy, so that
			// the one started below gets another.
			done <- onThread(f)
			runtime.UnlockOSThread()
			return
		}
		// No unlock: a thread whose locked goroutine returns is ended by the runtime.
		done <- f()
	}()
	return <-done
}

// In runs f on a thread of its own inside the network namespace at nsPath ("" =
// the caller's own). Sockets made by f stay in that namespace after In returns.
// f must not start goroutines that make sockets: they run elsewhere.
func In(nsPath string, f func() error) error {
	if nsPath == "" {
		return onThread(f)
	}
	return onThread(func() error {
		if err := enter(nsPath, unix.CLONE_NEWNET); err != nil {
			return err
		}
		return f()
	})
}

// enter moves the calling thread into the namespace at path. Only for threads
// made by onThread.
func enter(path string, kind int) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open namespace: %w", err)
	}
	defer f.Close()
	if err := unix.Setns(int(f.Fd()), kind); err != nil {
		return fmt.Errorf("enter namespace %s: %w", path, err)
	}
	return nil
}
