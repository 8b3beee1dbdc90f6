package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// socketPair returns two connected ends, the second for another process.
func socketPair() (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	own, remote := os.NewFile(uintptr(fds[0]), "content"), os.NewFile(uintptr(fds[1]), "server")
	defer own.Close()
	conn, err := net.FileConn(own)
	if err != nil {
		remote.Close()
		return nil, nil, err
	}
	return conn.(*net.UnixConn), remote, nil
}

// contentProcess is a content process that was started.
type contentProcess struct {
	cmd    *exec.Cmd
	stderr *tail
	ended  chan struct{} // closed when it has been reaped
}

// startContent starts a content process under c. The thread that starts it is confined
// with it, and ends with it: the kernel kills the process when that thread ends.
func startContent(c confinement, remote *os.File, env []string) (*contentProcess, error) {
	p := &contentProcess{stderr: &tail{}, ended: make(chan struct{})}
	p.cmd = &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{contentName}, Env: env, Dir: "/",
		Stderr: p.stderr, ExtraFiles: []*os.File{remote}, WaitDelay: contentGrace,
		SysProcAttr: &unix.SysProcAttr{Pdeathsig: unix.SIGKILL, Setsid: true},
	}
	tryPidfds()
	started := make(chan error)
	go onOwnThread(func() {
		err := c.enter()
		if err == nil {
			err = p.cmd.Start()
		}
		started <- err
		if err == nil {
			_ = p.cmd.Wait()
			close(p.ended)
		}
	})
	if err := <-started; err != nil {
		return nil, err
	}
	// The kernel, short of memory, ends this before anything else.
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", p.cmd.Process.Pid), []byte("1000"), 0)
	return p, nil
}

// tryPidfds has package os try now whether pidfds work, which it does once, with a child
// that signals: not on a thread that is confined, or whose child is the first of a PID namespace.
func tryPidfds() { _, _ = os.FindProcess(os.Getpid()) }

// onOwnThread runs do on a thread that no other goroutine gets before or after, and that
// is not the main one: what the kernel says of the process as a whole, and lets others do
// to it, goes by the main thread.
func onOwnThread(do func()) {
	runtime.LockOSThread() // for good: the thread ends with the goroutine
	if unix.Gettid() != unix.Getpid() {
		do()
		return
	}
	taken := make(chan struct{})
	go func() {
		runtime.LockOSThread() // another thread, since the main one is taken
		close(taken)
		do()
	}()
	<-taken
	runtime.UnlockOSThread()
}

// kill kills the process, and with it, as the first of its PID namespace, its children.
func (p *contentProcess) kill() { _ = p.cmd.Process.Kill() }

// end kills the process and waits for its end. What the kernel does not let end, since a
// disk does not answer, is reaped when it does: nobody waits for it.
func (p *contentProcess) end(log *slog.Logger) {
	p.kill()
	select {
	case <-p.ended:
	case <-time.After(contentGrace):
		log.Warn("a content process was killed and does not end: does the disk answer?", "pid", p.cmd.Process.Pid)
	}
}

// why returns the error of a process that has ended without a result.
func (p *contentProcess) why(ctx context.Context, err error, limits Limits) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) {
		return fmt.Errorf("the content process: %w", err)
	}
	select {
	case <-p.ended:
	case <-time.After(contentGrace):
		return errors.New("the content process has closed its connection, but does not end")
	}
	said := p.stderr.String()
	state := p.cmd.ProcessState
	status, _ := state.Sys().(interface{ Signaled() bool })
	switch {
	case outOfMemory(said):
		return memoryError(limits)
	case status != nil && status.Signaled() && state.SystemTime()+state.UserTime() >= contentCPU-time.Second:
		return fmt.Errorf("%w: unpacking it takes more than %v of processor time", ErrTooLarge, contentCPU)
	}
	return fmt.Errorf("the content process has ended: %v: %s", state, firstLines(said))
}

// outOfMemory reports whether a Go program has ended because it got no more memory. Its
// garbage collector does not expect that and then reads at address 0, on the stack of the
// runtime (goroutine 0), where no code of a program runs.
func outOfMemory(said string) bool {
	return strings.Contains(said, "runtime: out of memory") || strings.Contains(said, "runtime: cannot allocate memory") ||
		strings.Contains(said, "SIGSEGV") && strings.Contains(said, "addr=0x0") && strings.Contains(said, "goroutine 0 ")
}

func memoryError(limits Limits) error {
	return fmt.Errorf("%w: unpacking it takes more memory than images.limits.memory allows (%d)", ErrTooLarge, limits.Memory)
}
