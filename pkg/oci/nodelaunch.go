package oci

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/monitor/wire"
	"github.com/subpod/subpod/pkg/proc"
)

// nodeLaunch is a shell that waits for a line, then becomes the runtime. The container's
// init is an orphan when the runtime ends, and a child of the node's first process.
type nodeLaunch struct {
	m        nodeMonitor
	p        *Pending
	cmd      *exec.Cmd
	start    *os.File // the shell waits for a line from it
	names    []string // of the files that the monitor gets
	files    []*os.File
	console  *net.UnixListener // nil without a terminal
	sockDir  *os.File
	launched bool
}

// consoleSocket is where the runtime sends the terminal's other end to.
const consoleSocket = "console"

func (m nodeMonitor) launch(p *Pending) (launch, error) {
	l := &nodeLaunch{m: m, p: p}
	if err := l.begin(); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

func (l *nodeLaunch) pid() int { return l.cmd.Process.Pid }

func (l *nodeLaunch) begin() error {
	startEnd, start, err := os.Pipe()
	if err != nil {
		return err
	}
	defer startEnd.Close()
	l.start = start
	args := []string{"create", "--bundle", l.p.spec.Bundle, "--pid-file", filepath.Join(l.p.spec.Bundle, initPIDFile), "--no-new-keyring"}
	if l.p.spec.Terminal {
		socket, err := l.listen()
		if err != nil {
			return err
		}
		args = append(args, "--console-socket", socket)
	}
	const wait = `read -r go <&3 && exec 3<&- && exec "$@"`
	l.cmd = exec.Command("/bin/sh", slices.Concat([]string{"-c", wait, "launch"}, l.p.createArgv(), args, []string{l.p.spec.ID})...)
	l.cmd.Dir = l.p.spec.Bundle
	l.cmd.Env = runtimeEnv("")
	l.cmd.ExtraFiles = []*os.File{startEnd}
	l.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	theirs, err := l.pipes()
	defer closeFiles(theirs)
	if err != nil {
		return err
	}
	if err := l.p.start(l.cmd); err != nil {
		return fmt.Errorf("start a shell for %s: %w", l.p.rt.name, err)
	}
	l.launched = true
	return nil
}

// pipes makes the container's streams. With a terminal, stderr has the runtime's messages.
func (l *nodeLaunch) pipes() (theirs []*os.File, err error) {
	pipe := func(name string, write bool) (*os.File, error) {
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
			return nil, os.NewSyscallError("pipe2", err)
		}
		mine, their := p[0], p[1]
		if write {
			mine, their = their, mine
		}
		l.names, l.files = append(l.names, name), append(l.files, os.NewFile(uintptr(mine), name))
		f := os.NewFile(uintptr(their), name)
		theirs = append(theirs, f)
		return f, nil
	}
	var stdin, stdout, stderr *os.File
	if l.p.spec.Stdin && !l.p.spec.Terminal {
		if stdin, err = pipe(wire.FileStdin, true); err != nil {
			return theirs, err
		}
		l.cmd.Stdin = stdin
	}
	if stderr, err = pipe(wire.FileStderr, false); err != nil {
		return theirs, err
	}
	l.cmd.Stderr = stderr
	if !l.p.spec.Terminal {
		if stdout, err = pipe(wire.FileStdout, false); err != nil {
			return theirs, err
		}
		l.cmd.Stdout = stdout
	}
	return theirs, nil
}

// listen makes the socket for the terminal.
func (l *nodeLaunch) listen() (path string, err error) {
	if l.sockDir, err = os.OpenFile(l.p.spec.Bundle, unix.O_PATH|unix.O_DIRECTORY, 0); err != nil {
		return "", err
	}
	_ = os.Remove(filepath.Join(l.p.spec.Bundle, consoleSocket))
	// Through a descriptor: sun_path holds 108 bytes only.
	dir := fdOf(l.sockDir)
	addr := &net.UnixAddr{Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir, consoleSocket), Net: "unix"}
	if l.console, err = net.ListenUnix("unix", addr); err != nil {
		return "", fmt.Errorf("console socket: %w", err)
	}
	if path = filepath.Join(l.p.spec.Bundle, consoleSocket); len(path) > 107 {
		path = fmt.Sprintf("/proc/%d/fd/%d/%s", os.Getpid(), dir, consoleSocket)
	}
	return path, nil
}

// invoke sets c.Init as soon as it is known.
func (l *nodeLaunch) invoke(ctx context.Context, c *Container) error {
	c.Monitor = MonitorNode
	if _, err := l.start.WriteString("go\n"); err != nil {
		return fmt.Errorf("let the shell go on: %w", err)
	}
	stop := context.AfterFunc(ctx, func() {
		if id, err := proc.Identify(l.cmd.Process.Pid); err == nil {
			killTree(id)
		}
	})
	err := l.cmd.Wait()
	stop()
	if ctx.Err() != nil {
		return fmt.Errorf("%s create: %w", l.p.rt.name, context.Cause(ctx))
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return &RuntimeError{Op: "create", Handler: l.p.rt.name, ExitCode: exit.ExitCode(), Message: runtimeMessage(l.messages() + signalled(exit.ProcessState))}
	}
	if err != nil {
		return fmt.Errorf("run %s create: %w", l.p.rt.path, err)
	}
	pid, err := readPID(filepath.Join(l.p.spec.Bundle, initPIDFile))
	if err != nil {
		return err
	}
	if c.Init, err = proc.Identify(pid); err != nil {
		return fmt.Errorf("the container's init (process %d): %w", pid, err)
	}
	if err := l.terminal(); err != nil {
		return err
	}
	return l.register(ctx, c)
}

// messages returns what the runtime has written to its stderr.
func (l *nodeLaunch) messages() string {
	for i, name := range l.names {
		if name != wire.FileStderr {
			continue
		}
		fd := fdOf(l.files[i])
		if unix.SetNonblock(fd, true) != nil {
			return ""
		}
		var out strings.Builder
		buf := make([]byte, 4096)
		for out.Len() < 64<<10 {
			n, err := unix.Read(fd, buf)
			if err != nil || n <= 0 {
				break
			}
			out.Write(buf[:n])
		}
		return out.String()
	}
	return ""
}

// terminal takes the terminal's other end, which the runtime has sent.
func (l *nodeLaunch) terminal() error {
	if l.console == nil {
		return nil
	}
	_ = l.console.SetDeadline(time.Now().Add(time.Second))
	conn, err := l.console.AcceptUnix()
	if err != nil {
		return fmt.Errorf("%s has sent no terminal: %w", l.p.rt.name, err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	master, err := receiveFile(conn)
	if err != nil {
		return err
	}
	l.names, l.files = append(l.names, wire.FileTerminal), append(l.files, master)
	return nil
}

// register gives the container to the monitor.
func (l *nodeLaunch) register(ctx context.Context, c *Container) error {
	if l.p.log != nil {
		l.names, l.files = append(l.names, wire.FileLog), append(l.files, l.p.log)
		l.p.log = nil
	}
	cgroup, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", c.Init.PID))
	if events := memoryEvents("/sys/fs/cgroup", cgroup); events != nil {
		l.names, l.files = append(l.names, wire.FileEvents), append(l.files, events)
	}
	var fds []int
	for _, f := range l.files {
		fds = append(fds, fdOf(f))
	}
	// So that the next server asks the monitor for it.
	if err := os.WriteFile(l.m.marker(), nil, 0o600); err != nil {
		return err
	}
	state := &wire.Container{V: wire.Version, ID: l.p.spec.ID, Init: c.Init, Bundle: l.p.spec.Bundle, StdinOnce: l.p.spec.StdinOnce, Files: l.names}
	if _, err := l.m.ask(ctx, wire.Request{Op: wire.OpRegister, ID: l.p.spec.ID, Container: state}, fds...); err != nil {
		return fmt.Errorf("give the container to its monitor: %w", err)
	}
	return nil
}

// memoryEvents opens memory.events of the cgroup that /proc/PID/cgroup names, below the
// cgroup2 tree at root; nil where there is none.
func memoryEvents(root string, cgroup []byte) *os.File {
	for line := range strings.Lines(string(cgroup)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok && path != "/" {
			f, err := os.Open(filepath.Join(root, path, "memory.events"))
			if err == nil {
				return f
			}
		}
	}
	return nil
}

func (l *nodeLaunch) close() {
	if l.launched && l.cmd.ProcessState == nil {
		_ = l.cmd.Process.Kill()
		_ = l.cmd.Wait()
	}
	closeFiles(l.files)
	for _, f := range []*os.File{l.start, l.sockDir} {
		if f != nil {
			f.Close()
		}
	}
	if l.console != nil {
		l.console.Close()
	}
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
