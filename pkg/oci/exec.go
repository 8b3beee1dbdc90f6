package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/subpod/subpod/pkg/proc"
)

// ExecSpec is a command for ExecSync.
type ExecSpec struct {
	Process *specs.Process
	Timeout time.Duration // 0 = none
}

// ExecResult is what a command wrote and returned.
type ExecResult struct {
	Stdout, Stderr []byte // what is beyond 16 MiB each is dropped
	ExitCode       int32
}

// maxOutput bounds each stream of ExecSync, as the CRI asks for.
const maxOutput = 16 << 20

// ExecSync runs a command in a running container and collects its output. It
// returns when the command has ended, although children of it may hold its
// output open. When the timeout is over the command and what it started are
// killed: ErrTimeout, with the output until then. ErrNotRunning and
// *RuntimeError as for Exec.
func (e *Executor) ExecSync(ctx context.Context, id string, f Facts, s ExecSpec) (ExecResult, error) {
	if s.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, s.Timeout, ErrTimeout)
		defer cancel()
	}
	var stdout, stderr bounded
	code, err := e.Exec(ctx, id, f, s.Process, Streams{Stdout: &stdout, Stderr: &stderr})
	return ExecResult{Stdout: stdout.b, Stderr: stderr.b, ExitCode: code}, err
}

// bounded keeps the first maxOutput bytes.
type bounded struct{ b []byte }

func (w *bounded) Write(p []byte) (int, error) {
	w.b = append(w.b, p[:min(len(p), maxOutput-len(w.b))]...)
	return len(p), nil
}

// Exec runs a command in a running container, connected to the streams, and
// returns its exit code (128 + signal when a signal ended it). When ctx is done
// first, the command and what it started are killed and the context's cause is
// returned. A command that could not be run is a *RuntimeError.
func (e *Executor) Exec(ctx context.Context, id string, f Facts, p *specs.Process, s Streams) (int32, error) {
	rt, err := e.handler(f.Handler)
	if err != nil {
		return -1, err
	}
	if err := checkID(id); err != nil {
		return -1, err
	}
	if err := e.running(ctx, rt, id, f); err != nil {
		return -1, err
	}
	dir, err := os.MkdirTemp(e.execDir, "")
	if err != nil {
		return -1, err
	}
	defer os.RemoveAll(dir)
	process := *p
	process.Terminal = s.TTY
	b, err := json.Marshal(&process)
	if err != nil {
		return -1, fmt.Errorf("encode process: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "process.json"), b, 0o600); err != nil {
		return -1, err
	}
	x := &execution{rt: rt, facts: f, dir: dir}
	defer func() {
		if x.io != nil {
			x.io.close()
		}
	}()
	if err := x.start(id, s); err != nil {
		return -1, fmt.Errorf("exec in container %s: %w", id, err)
	}
	code, err := x.wait(ctx)
	if err != nil {
		return -1, err
	}
	if code == 0 {
		return 0, nil
	}
	log, err := os.ReadFile(x.logFile())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return -1, err
	}
	if words := loggedErrors(string(log)); words != "" {
		return -1, &RuntimeError{Op: "exec", Handler: rt.name, Message: words, ExitCode: int(code)}
	}
	return code, nil
}

// execution is one command that the runtime executes in a container. The
// runtime stays its parent until it ends.
type execution struct {
	rt     *runtime
	facts  Facts
	dir    string
	cmd    *exec.Cmd
	parent proc.ID // the runtime's process
	io     execIO
}

// execIO connects an execution to the client's streams.
type execIO interface {
	// started closes what only the runtime needs.
	started()
	// finish delivers the output up to now; ctx ends the wait for a slow client.
	finish(ctx context.Context)
	close()
	// holds reports whether an open file of a process is one of the outputs.
	holds(link string) bool
}

func (x *execution) logFile() string { return filepath.Join(x.dir, "log") }
func (x *execution) pidFile() string { return filepath.Join(x.dir, "pid") }

func (x *execution) start(id string, s Streams) (err error) {
	args := []string{"--log=" + x.logFile(), "exec", "--process", filepath.Join(x.dir, "process.json"), "--pid-file", x.pidFile()}
	switch {
	case !s.TTY:
		x.cmd = x.rt.command(append(args, id)...)
		x.io, err = newPipes(x.cmd, s)
	case x.rt.crun:
		var t *terminal
		if t, err = newConsoleSocket(x.dir, s); err == nil {
			x.cmd = x.rt.command(append(args, "--console-socket", t.socket, id)...)
			x.io = t
		}
	default:
		// runc takes a console socket only when it detaches, and then the exit
		// code is lost. It copies between the container's terminal and its own.
		x.cmd = x.rt.command(append(args, id)...)
		x.io, err = newPTY(x.cmd, s)
	}
	if err != nil {
		x.io = nil
		return err
	}
	if err := x.cmd.Start(); err != nil {
		return err
	}
	x.io.started()
	x.parent, err = proc.Identify(x.cmd.Process.Pid)
	return err
}

// wait returns the command's exit code, or the context's cause after it has
// killed the execution.
func (x *execution) wait(ctx context.Context) (int32, error) {
	watch, cancel := context.WithCancel(ctx)
	defer cancel()
	runtime := ended(watch, x.parent)
	var command <-chan exitInfo
	if !x.rt.crun || x.facts.PIDNamespace == "host" {
		// The runtime may go on when the command has ended: runc until its
		// children let go of the output, crun until those have ended that it
		// became the parent of.
		command = x.commandExit(watch)
	}
	var err error
	var exit exitInfo
	select {
	case err = <-runtime:
	case exit = <-command:
		select {
		case err = <-runtime:
			exit.known = false
		case <-time.After(100 * time.Millisecond):
			if exit.known {
				_ = x.parent.Signal(syscall.SIGKILL)
			} else {
				err = <-runtime
			}
		}
	}
	if err != nil {
		x.kill()
	}
	_ = x.cmd.Wait() // at once: it has ended
	x.io.finish(ctx)
	switch {
	case err != nil && ctx.Err() != nil:
		return -1, context.Cause(ctx)
	case err != nil:
		return -1, err
	case exit.known:
		return exit.code, nil
	}
	return exitCode(x.cmd.ProcessState), nil
}

func exitCode(st *os.ProcessState) int32 {
	ws, ok := st.Sys().(syscall.WaitStatus)
	if ok && ws.Signaled() {
		return 128 + int32(ws.Signal())
	}
	return int32(st.ExitCode())
}

// exitInfo is the end of a command; the code is known from Linux 6.15 on.
type exitInfo struct {
	code  int32
	known bool
}

// commandExit delivers once when the command itself has ended. Nothing comes
// when it has ended too fast to be seen, and the runtime then ends as well.
func (x *execution) commandExit(ctx context.Context) <-chan exitInfo {
	c := make(chan exitInfo, 1)
	go func() {
		id, err := x.command(ctx)
		if err != nil {
			return
		}
		pidfd, err := id.Open()
		if err != nil {
			return
		}
		defer pidfd.Close()
		if id.Wait(ctx) != nil {
			return
		}
		var exit exitInfo
		// Its parent reaps it in a moment, and only then is the code there.
		for range 20 {
			if exit.code, exit.known = pidfdExit(pidfd); exit.known {
				break
			}
			time.Sleep(time.Millisecond)
		}
		c <- exit
	}()
	return c
}

// command returns the command's process once the runtime has written its PID.
func (x *execution) command(ctx context.Context) (proc.ID, error) {
	for {
		if pid, err := readPID(x.pidFile()); err == nil {
			return proc.Identify(pid)
		}
		select {
		case <-ctx.Done():
			return proc.ID{}, ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
}

// kill ends the command, everything below it, its session, and every process
// of the container that holds its output. A daemon that has let go of all
// three is not found; it was meant to outlive the command.
func (x *execution) kill() {
	self, _ := readProcStat(os.Getpid())
	session := 0
	pid, err := readPID(x.pidFile())
	if err == nil {
		if st, err := readProcStat(pid); err == nil && st.session != self.session {
			session = st.session
		}
	}
	for range 200 { // what forks while it is being killed is found the next time
		left := x.processes(pid, session)
		if len(left) == 0 {
			break
		}
		for _, id := range left {
			_ = id.Signal(syscall.SIGKILL)
		}
		time.Sleep(time.Millisecond)
	}
	_ = x.parent.Signal(syscall.SIGKILL)
}

// processes finds what kill must end, without the runtime's own process: it is
// what the others hang on to.
func (x *execution) processes(command, session int) []proc.ID {
	all, _ := pids()
	parent := map[int]int{}
	var found []proc.ID
	stats := map[int]procStat{}
	for _, pid := range all {
		if st, err := readProcStat(pid); err == nil {
			stats[pid], parent[pid] = st, st.ppid
		}
	}
	below := func(pid int) bool {
		for n := 0; pid > 1 && n < len(all); pid, n = parent[pid], n+1 {
			if pid == x.parent.PID || pid == command && command != 0 {
				return true
			}
		}
		return false
	}
	for pid, st := range stats {
		if pid == x.parent.PID || st.state == 'Z' || st.state == 'X' {
			continue
		}
		if !below(pid) && (session == 0 || st.session != session) && !x.holdsOutput(pid) {
			continue
		}
		if id, err := proc.Identify(pid); err == nil {
			found = append(found, id)
		}
	}
	return found
}

// holdsOutput looks at the open files of the container's processes only.
func (x *execution) holdsOutput(pid int) bool {
	if !x.facts.isMember(pid) {
		return false
	}
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	names, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	for _, n := range names {
		if link, err := os.Readlink(filepath.Join(dir, n.Name())); err == nil && x.io.holds(link) {
			return true
		}
	}
	return false
}
