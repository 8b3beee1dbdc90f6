// Package initproc is the init process of containers that ask for one: it runs the
// command, passes signals on to it, reaps what it leaves behind, and ends as it ends.
package initproc

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// Exit codes, as shells have them.
const (
	exitNotExecutable = 126
	exitNotFound      = 127
)

// Main runs the command args[0] and returns its exit code.
func Main(args []string) int {
	if len(args) == 0 {
		return exitNotFound
	}
	path, err := exec.LookPath(args[0])
	if err != nil {
		fmt.Fprintln(os.Stderr, "init:", err)
		if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
			return exitNotFound
		}
		return exitNotExecutable
	}
	caught := make(chan os.Signal, 64)
	signal.Notify(caught) // before the command can end
	child, err := os.StartProcess(path, args, &os.ProcAttr{
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Sys:   childAttributes(),
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "init:", err)
		return exitNotExecutable
	}
	return supervise(child.Pid, caught)
}

// childAttributes make the command the foreground job of the terminal, if there is one.
func childAttributes() *syscall.SysProcAttr {
	if _, err := unix.IoctlGetTermios(0, unix.TCGETS); err == nil {
		return &syscall.SysProcAttr{Setpgid: true, Foreground: true, Ctty: 0}
	}
	return &syscall.SysProcAttr{Setpgid: true}
}

func supervise(pid int, caught <-chan os.Signal) int {
	for {
		if code, ended := reap(pid); ended {
			return code
		}
		sig, ok := (<-caught).(syscall.Signal)
		if !ok || sig == unix.SIGCHLD || sig == unix.SIGURG { // the second is the Go runtime's
			continue
		}
		_ = unix.Kill(pid, sig)
	}
}

// reap collects all processes that have ended, and reports whether the command has.
func reap(pid int) (code int, ended bool) {
	for {
		var st unix.WaitStatus
		got, err := unix.Wait4(-1, &st, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if errors.Is(err, unix.ECHILD) && !ended {
			return exitNotExecutable, true // it cannot be: the command is a child
		}
		if err != nil || got <= 0 {
			return code, ended
		}
		if got != pid {
			continue
		}
		ended, code = true, st.ExitStatus()
		if st.Signaled() {
			code = 128 + int(st.Signal())
		}
	}
}
