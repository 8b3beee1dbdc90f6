package oci

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/proc"
	"github.com/subpod/subpod/pkg/stdio"
)

// ExecSpec is a command for ExecSync.
type ExecSpec struct {
	Process *specs.Process
	Timeout time.Duration // 0 = none
	// MaxOutput is how many bytes are kept of each stream; 0 is 16 MiB.
	MaxOutput int
}

// ExecResult is what a command wrote and returned.
type ExecResult struct {
	Stdout, Stderr []byte // what is beyond ExecSpec.MaxOutput is dropped
	ExitCode       int32
}

// maxOutput bounds each stream of ExecSync where the request does not.
const maxOutput = 16 << 20

// ExecSync runs a command in a running container and collects its output. It
// returns when the command has ended, although children of it may hold its
// output open. When the timeout is over the command and what it started are
// killed: ErrTimeout, with the output until then. ErrNotRunning and
// *RuntimeError as for Exec.
func (e *Executor) ExecSync(ctx context.Context, id string, c Container, s ExecSpec) (ExecResult, error) {
	if s.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, s.Timeout, ErrTimeout)
		defer cancel()
	}
	limit := cmp.Or(s.MaxOutput, maxOutput)
	stdout, stderr := bounded{limit: limit}, bounded{limit: limit}
	code, err := e.Exec(ctx, id, c, s.Process, stdio.Streams{Stdout: &stdout, Stderr: &stderr})
	return ExecResult{Stdout: stdout.take(), Stderr: stderr.take(), ExitCode: code}, err
}

// bounded keeps the first limit bytes until they are taken.
type bounded struct {
	limit int
	mu    sync.Mutex
	b     []byte
	taken bool
}

// Write implements io.Writer.
func (w *bounded) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.taken {
		return 0, io.ErrClosedPipe
	}
	w.b = append(w.b, p[:min(len(p), w.limit-len(w.b))]...)
	return len(p), nil
}

// take returns what was written. Nothing is added to it any more.
func (w *bounded) take() []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.taken = true
	return w.b
}

// Exec runs a command in a running container, connected to the streams, and
// returns its exit code (128 + signal when a signal ended it). When ctx is done
// first, the command and what it started are killed and the context's cause is
// returned. A command that could not be run is a *RuntimeError, or ErrCommandNotFound or
// ErrCommandNotExecutable. A client that
// does not read may have a Write of it pending when Exec returns because of ctx,
// and a Read of Stdin always; both end with the client's connection.
func (e *Executor) Exec(ctx context.Context, id string, c Container, p *specs.Process, s stdio.Streams) (int32, error) {
	rt, err := e.handler(c.Handler)
	if err != nil {
		return -1, err
	}
	if err := checkID(id); err != nil {
		return -1, err
	}
	if err := rt.running(ctx, id, c); err != nil {
		return -1, err
	}
	if _, err := c.checkProgram(ctx, programOf(p)); err != nil {
		return -1, fmt.Errorf("exec in container %s: %w", id, err)
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
	x := &execution{rt: rt, ctr: c, dir: dir, process: b, oomScore: process.OOMScoreAdj}
	defer x.close()
	if err := x.start(e, id, s); err != nil {
		return -1, fmt.Errorf("exec in container %s: %w", id, err)
	}
	ended := make(chan struct{})
	if s.Begun != nil {
		go x.announce(ended, s.Begun)
	}
	code, err := x.wait(ctx)
	close(ended)
	if err != nil {
		return -1, err
	}
	if code == 0 {
		return 0, nil
	}
	message := x.failure()
	if message == "" && code > 0 && !x.executed() {
		message = "failed without a message" // seen of crun when the container ends meanwhile
	}
	if message != "" {
		return -1, execFailure(ctx, c, &RuntimeError{Op: "exec", Handler: rt.name, Message: message, ExitCode: int(code)})
	}
	if code < 0 {
		return -1, fmt.Errorf("exec in container %s: %s was killed, the exit code is lost", id, x.rt.name)
	}
	return code, nil
}

// endGrace is how long an init whose namespaces are gone may take to end.
const endGrace = 200 * time.Millisecond

// execFailure distinguishes an exec that failed because the container ended
// meanwhile, which the runtime reports in many ways, from one that failed by itself.
func execFailure(ctx context.Context, c Container, failed *RuntimeError) error {
	if errors.Is(failed, ErrCommandNotFound) || errors.Is(failed, ErrCommandNotExecutable) {
		return failed
	}
	if errors.Is(failed, unix.EAGAIN) {
		// The container may have a limit of its own.
		if limit := proc.ForkLimit(c.Init.PID); limit != "" {
			return fmt.Errorf("%w: %s: %w", ErrProcessLimit, limit, failed)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, endGrace)
	defer cancel()
	if err := c.Init.Wait(ctx); err != nil {
		return failed // it lives
	}
	return fmt.Errorf("%w any more: %w", ErrNotRunning, failed)
}

// execution is one command that the runtime executes in a container. Its parent
// is the runtime itself or, where the runtime would wait for more than the
// command, a conmon.
type execution struct {
	rt  *runtime
	ctr Container
	dir string
	// process is what the runtime is told of the command, as JSON.
	process []byte
	// oomScore is what the command has of the container's; nil where nothing is asked for.
	oomScore *int
	cmd      *exec.Cmd
	parent   proc.ID
	feed     *os.File // where the runtime reads process; nil with conmon
	sync     *os.File // conmon's answers; nil without conmon
	io       execIO
}

// execIO connects an execution to the client's streams.
type execIO interface {
	// started closes what only the command needs.
	started()
	// finish delivers the output up to now. The end of ctx ends the wait for a
	// client that does not read.
	finish(ctx context.Context)
	close()
	// holds reports whether an open file of a process is one of the streams.
	holds(link string) bool
}

func (x *execution) logFile() string     { return filepath.Join(x.dir, "log") }
func (x *execution) pidFile() string     { return filepath.Join(x.dir, "pid") }
func (x *execution) processFile() string { return filepath.Join(x.dir, "process.json") }

func (x *execution) start(e *Executor, id string, s stdio.Streams) error {
	var options []string
	var console *terminal
	if s.TTY {
		var err error
		if console, err = newConsoleSocket(x.dir, s); err != nil {
			return err
		}
		x.io = console
		options = []string{"--console-socket", console.socket}
	}
	// crun becomes the parent of what the command leaves behind in a shared PID
	// namespace and waits for it too. runc without --detach copies the streams
	// and waits until nobody holds them.
	prepare := x.prepareConmon
	if x.rt.crun && x.ctr.PIDNamespace != "host" {
		prepare = x.prepareRuntime
	}
	theirs, err := prepare(e, id, options)
	if err != nil {
		return err
	}
	defer theirs.Close()
	x.cmd.ExtraFiles = []*os.File{theirs}
	if console == nil {
		p, err := newPipes(x.cmd, s)
		if err != nil {
			return err
		}
		x.io = p
	}
	f, err := filtersOf(e, x.ctr.Confined, x.ctr.Switched)
	if err != nil {
		return err
	}
	keyring, err := startCommand(x.cmd, f)
	sharedKeyring(e, keyring)
	if err != nil {
		return err
	}
	x.io.started()
	if x.feed != nil {
		x.tell()
	}
	x.parent, err = proc.Identify(x.cmd.Process.Pid)
	return err
}

// prepareRuntime has the runtime execute the command as its own child. It reads from the
// pipe that is returned what to execute.
func (x *execution) prepareRuntime(_ *Executor, id string, options []string) (theirs *os.File, err error) {
	args := []string{"--log=" + x.logFile(), "exec", "--process", "/proc/self/fd/3", "--pid-file", x.pidFile()}
	x.cmd = x.rt.command(slices.Concat(args, options, []string{id})...)
	theirs, x.feed, err = os.Pipe()
	return theirs, err
}

// tell gives the runtime its score, which its children inherit, and then the command: the
// runtimes set a score for a container's init only, and the command would begin with the
// server's. The runtime may never read.
func (x *execution) tell() {
	if x.oomScore != nil {
		score := []byte(strconv.Itoa(*x.oomScore))
		// Without root it can be raised only, and a limit of the machine's is no failure.
		_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", x.cmd.Process.Pid), score, 0)
	}
	go func(feed *os.File) {
		_, _ = feed.Write(x.process) // fails where the runtime ends before, which says why
		feed.Close()
	}(x.feed)
}

// prepareConmon has a conmon execute the command, which answers through the pipe that is
// returned.
func (x *execution) prepareConmon(e *Executor, id string, options []string) (theirs *os.File, err error) {
	if err := os.WriteFile(x.processFile(), x.process, 0o600); err != nil {
		return nil, err
	}
	x.cmd = x.withOOMScore(exec.Command(e.conmon, x.conmonArgs(id, options)...))
	x.cmd.Dir = x.dir // where conmon would write "oom"
	x.cmd.Env = append(runtimeEnv(""), "_OCI_SYNCPIPE=3")
	x.sync, theirs, err = os.Pipe()
	return theirs, err
}

// withOOMScore has conmon begin with the score of the container, for the same reason. It
// reads nothing before it forks, so it costs a shell.
func (x *execution) withOOMScore(cmd *exec.Cmd) *exec.Cmd {
	if x.oomScore == nil {
		return cmd
	}
	return exec.Command("/bin/sh", slices.Concat([]string{"-c", `{ echo "$0" >/proc/self/oom_score_adj; } 2>/dev/null; exec "$@"`, strconv.Itoa(*x.oomScore)}, cmd.Args)...)
}

// conmonArgs lets conmon run a detached exec and wait for the command. With the
// log driver "passthrough" the command has our streams and conmon has none.
func (x *execution) conmonArgs(id string, options []string) []string {
	argv := x.rt.argv("--log=" + x.logFile())
	args := []string{
		"--api-version", "1", "--sync", "--exec",
		"--cid", id, "--cuuid", id,
		"--exec-process-spec", x.processFile(),
		"--container-pidfile", x.pidFile(),
		"--log-path", "passthrough", "--log-level", "error",
		"--runtime", argv[0],
	}
	for _, a := range argv[1:] {
		args = append(args, "--runtime-arg="+a)
	}
	for _, o := range options {
		args = append(args, "--runtime-opt="+o)
	}
	return args
}

// wait returns the command's exit code (-1 if it is not known), or the
// context's cause after it has killed the execution.
func (x *execution) wait(ctx context.Context) (int32, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	hangs := time.AfterFunc(x.rt.timeout, func() {
		if !x.runs() {
			cancel(ErrRuntimeHangs)
		}
	})
	defer hangs.Stop()
	err := x.parent.Wait(ctx)
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
	case x.sync != nil:
		return x.conmonExit()
	case x.cmd.ProcessState == nil:
		return -1, fmt.Errorf("exit code of %s exec: someone else has taken it", x.rt.name)
	}
	ws := x.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if ws.Signaled() { // the runtime itself: it reports a command's end by a signal as a code
		return -1, nil
	}
	return int32(ws.ExitStatus()), nil
}

// executed reports whether there has been a process for the command.
func (x *execution) executed() bool {
	_, err := readPID(x.pidFile())
	return err == nil
}

// runs reports whether the command is executed, or has been.
func (x *execution) runs() bool {
	pid, err := readPID(x.pidFile())
	if err != nil {
		return false // the runtime has not got that far
	}
	_, ok := x.rt.helperOf(pid, argsOf(pid))
	return !ok
}

// beginPoll is the time between two looks whether the command of an exec is executed.
const beginPoll = 5 * time.Millisecond

// announce calls begun when the command is executed and lives. One that is gone by then may
// be the runtime's, which could not execute it: its end says more.
func (x *execution) announce(ended <-chan struct{}, begun func()) {
	lives := func() bool {
		pid, err := readPID(x.pidFile())
		if err != nil {
			return false
		}
		st, err := proc.ReadStat(pid)
		return err == nil && !st.Ended()
	}
	for !x.runs() || !lives() {
		select {
		case <-ended:
			return
		case <-time.After(beginPoll):
		}
	}
	begun()
}

// conmonExit reads what conmon has written: the command's PID, then its exit
// code. Where there was no command it has written an error alone, or nothing.
func (x *execution) conmonExit() (int32, error) {
	_ = x.sync.SetReadDeadline(time.Now().Add(time.Second))
	dec := json.NewDecoder(io.LimitReader(x.sync, 64<<10))
	code := int32(-1)
	for n := 0; n < 2; n++ {
		var m struct{ Data int32 }
		if dec.Decode(&m) != nil {
			return -1, nil
		}
		code = m.Data
	}
	return code, nil
}

// failure returns the runtime's message if it could not run the command.
func (x *execution) failure() string {
	log, _ := os.ReadFile(x.logFile())
	return loggedErrors(string(log))
}

func (x *execution) close() {
	if x.io != nil {
		x.io.close()
	}
	if x.sync != nil {
		x.sync.Close()
	}
	if x.feed != nil {
		x.feed.Close() // again, but where the runtime has not read it all
	}
}

// kill ends the command, everything below it, its session, and every process
// of the container that holds its output. A daemon that has let go of all
// three is not found; it was meant to outlive the command.
func (x *execution) kill() {
	_ = x.parent.Signal(syscall.SIGSTOP) // see killTree
	self, _ := proc.ReadStat(os.Getpid())
	session := 0
	pid, err := readPID(x.pidFile())
	if err == nil {
		if st, err := proc.ReadStat(pid); err == nil && st.Session != self.Session {
			session = st.Session
		}
	}
	killAll(func(t processTable) []proc.ID { return x.processes(t, pid, session) })
	_ = x.parent.Signal(syscall.SIGKILL)
}

// processes finds what kill must end, without the runtime's own process: it is
// what the others hang on to.
func (x *execution) processes(t processTable, command, session int) []proc.ID {
	var found []proc.ID
	for pid, st := range t {
		if pid == x.parent.PID || pid == x.ctr.Init.PID || st.Ended() {
			continue
		}
		below := t.below(pid, x.parent.PID) || command != 0 && t.below(pid, command)
		if below || session != 0 && st.Session == session || x.holdsStream(pid) {
			found = append(found, proc.ID{PID: pid, StartTime: st.StartTime})
		}
	}
	return found
}

// holdsStream reports whether a process of the container has one of the
// command's streams open.
func (x *execution) holdsStream(pid int) bool {
	if !x.ctr.isMember(pid) {
		return false
	}
	dir := proc.Dir(pid) + "/fd"
	names, _ := os.ReadDir(dir)
	return slices.ContainsFunc(names, func(n os.DirEntry) bool {
		link, err := os.Readlink(filepath.Join(dir, n.Name()))
		return err == nil && x.io.holds(link)
	})
}
