package netns

import (
	"errors"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// pauseArg and oldPauseArg are the arguments by which servers of earlier versions make
// a pause process of the binary that has replaced their own, until they are reloaded.
const (
	pauseArg    = "pause"
	oldPauseArg = "pid-keeper"
)

// Dispatch runs a pause process for a running server of an earlier version, and never
// returns then. It returns at once in any other process. Call it first in main.
func Dispatch() {
	if len(os.Args) != 2 || os.Args[1] != pauseArg && os.Args[1] != oldPauseArg || len(os.Environ()) != 0 {
		return
	}
	reapForever()
}

// reapForever reaps the orphans that the kernel reparents to the first process of a PID
// namespace, and exits on SIGTERM or SIGINT.
func reapForever() {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	child := make(chan os.Signal, 1)
	signal.Notify(child, syscall.SIGCHLD)
	for {
		for {
			pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
			if pid <= 0 && !errors.Is(err, unix.EINTR) {
				break
			}
		}
		select {
		case <-stop:
			os.Exit(0)
		case <-child:
		}
	}
}
