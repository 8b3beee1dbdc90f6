package rootless

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// nestedNamespaces are made where the outer container lets us; the PID
// namespace is the only one that it may rightly refuse.
const nestedNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS

// runNested makes a node inside a user namespace in which we are uid 0 already
// (kind, rootlesskit, unshare -r): its ID range and its network are the node's.
func runNested(ctx context.Context, c Config) error {
	if cg := detectCgroup(); cg.delegated() {
		if err := cg.evacuate(); err != nil {
			c.Log.Warn("containers run without resource limits", "error", err)
		}
	}
	err := startNested(ctx, c, nestedNamespaces|unix.CLONE_NEWPID)
	if errors.Is(err, errNoProc) {
		c.Log.Warn("no PID namespace for the node: containers will outlive a killed daemon", "reason", err)
		err = startNested(ctx, c, nestedNamespaces)
	}
	return err
}

// errNoProc is what exitNoProc of a nested node's first process stands for.
var errNoProc = errors.New("a PID namespace needs a fresh /proc, which cannot be mounted here: parts of /proc are masked")

// exitNoProc is the exit code for errNoProc: free in sysexits.h.
const exitNoProc = 80

func startNested(ctx context.Context, c Config, namespaces uintptr) error {
	dir := nodeDir(c.RunDir)
	cmd := exec.Command(selfExe, roleNested)
	cmd.Env = append(cleanEnv(os.Environ()), envRole+"="+roleNested, envState+"="+dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: namespaces, Pdeathsig: unix.SIGKILL}

	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	defer signal.Stop(signals)
	// The death signal is tied to the thread that starts the child.
	started, ended := make(chan error, 1), make(chan error, 1)
	go func() {
		lockThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			ended <- cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("start a node inside this user namespace (it takes CAP_SYS_ADMIN there): %w", err)
	}
	pid := []byte(strconv.Itoa(cmd.Process.Pid))
	if err := os.WriteFile(filepath.Join(dir, fileChildPID), pid, 0o600); err != nil {
		_ = cmd.Process.Kill()
		return errors.Join(err, <-ended)
	}
	done := ctx.Done()
	for {
		select {
		case sig := <-signals:
			_ = cmd.Process.Signal(sig)
		case <-done:
			_ = cmd.Process.Signal(unix.SIGTERM)
			done = nil
		case err := <-ended:
			return nestedResult(err)
		}
	}
}

func nestedResult(err error) error {
	switch {
	case err == nil:
		return nil
	case exitCode(err) == exitNoProc:
		return errNoProc
	default:
		return fmt.Errorf("the node has ended: %w", err)
	}
}

// runNestedInit is the first process of a nested node: it makes the mounts,
// starts the supervisor, forwards signals to it and reaps orphans.
func runNestedInit() error {
	c, err := loadConfig(os.Getenv(envState))
	if err != nil {
		return fmt.Errorf("read the node's configuration: %w", err)
	}
	// From here on nothing mounted spreads to the namespace we came from.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("take the mounts into the node: %w", err)
	}
	if os.Getpid() == 1 {
		if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			return &exitError{"mounting /proc", exitNoProc}
		}
	} else if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become the reaper of the node: %w", err)
	}
	cg := detectCgroup()
	var copyUp []string
	for _, d := range c.CopyUp {
		// An outer container's own writable directory is better than a tmpfs.
		if unix.Access(d, unix.W_OK) != nil {
			copyUp = append(copyUp, d)
		}
	}
	if err := mountNode(c, copyUp, false); err != nil {
		return err
	}
	if err := writeFacts(c, cg, true); err != nil {
		return err
	}
	c.Log = newLogger(c, "child")
	w := &watcher{}
	w.start(c)
	return superviseAndReap(w)
}

// superviseAndReap runs the supervisor and returns its result. All waiting is
// done by one wait4 loop: os/exec's would race with it for children.
func superviseAndReap(w *watcher) error {
	signals := make(chan os.Signal, 64)
	signal.Notify(signals, unix.SIGCHLD, unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	attr := &os.ProcAttr{
		Env:   append(cleanEnv(os.Environ()), envRole+"="+roleSupervisor, envState+"="+os.Getenv(envState)),
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Sys:   &syscall.SysProcAttr{Setsid: true, Pdeathsig: unix.SIGKILL},
	}
	lockThread() // for the death signal
	p, err := os.StartProcess(selfExe, []string{selfExe, roleSupervisor}, attr)
	if err != nil {
		return fmt.Errorf("start the supervisor: %w", err)
	}
	for sig := range signals {
		if sig != unix.SIGCHLD {
			_ = unix.Kill(p.Pid, sig.(unix.Signal))
			continue
		}
		if ws, ended := reap(p.Pid, w.reaped); ended {
			killOrphans()
			if ws.ExitStatus() == 0 {
				return nil
			}
			return &exitError{"the supervisor", ws.ExitStatus()}
		}
	}
	return nil
}

// killOrphans ends what the kernel ends in a PID namespace: each process that is
// still below this one becomes its child when its own parent has ended.
func killOrphans() {
	if os.Getpid() == 1 {
		return
	}
	for {
		files, _ := filepath.Glob("/proc/self/task/*/children")
		for _, f := range files {
			b, _ := os.ReadFile(f)
			for _, child := range strings.Fields(string(b)) {
				if pid, err := strconv.Atoi(child); err == nil {
					_ = unix.Kill(pid, unix.SIGKILL)
				}
			}
		}
		if _, err := unix.Wait4(-1, nil, 0, nil); errors.Is(err, unix.ECHILD) {
			return
		}
	}
}

// reap collects all children that have ended, and reports whether pid is among them.
func reap(pid int, reaped func(int, unix.WaitStatus)) (ws unix.WaitStatus, ended bool) {
	for {
		var s unix.WaitStatus
		got, err := unix.Wait4(-1, &s, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || got <= 0 {
			return ws, ended
		}
		if got == pid {
			ws, ended = s, true
		} else {
			reaped(got, s)
		}
	}
}
