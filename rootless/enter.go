package rootless

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// EnterOptions shape a command that Enter runs.
type EnterOptions struct {
	// HostNetwork keeps the command in the network namespace of the server (the
	// host's) instead of the node's.
	HostNetwork bool
	// HostTree runs the command with the node's IDs over the host's whole tree, outside
	// of the node's other namespaces, where the node shows only a part of that.
	HostTree bool
	// Dir is the working directory in the node; empty means the caller's, or /
	// where the node has none of that name.
	Dir string
	// Env is the environment; nil means the caller's.
	Env            []string
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Files are the command's descriptors from 3 on.
	Files []*os.File
}

// ErrNotOwner says that the caller is not the user that the node belongs to.
var ErrNotOwner = errors.New("the node belongs to another user")

// Enter runs argv as root of the node of runDir: in its user, mount, PID, IPC,
// UTS and network namespaces. It returns the exit code once the command has
// ended. SIGTERM and SIGHUP to the caller, and the end of ctx (as SIGTERM), are
// forwarded; the command is killed when the caller dies.
//
// Errors are about getting there only: ErrNoNode, ErrNotOwner, or a missing
// nsenter(1). A command that cannot be executed has exit code 126 or 127, as in
// a shell.
func Enter(ctx context.Context, runDir string, argv []string, opts EnterOptions) (exitCode int, err error) {
	if len(argv) == 0 {
		return -1, errors.New("no command to run in the node")
	}
	if st, err := os.Stat(runDir); err == nil && ownerOf(st) != os.Geteuid() {
		return -1, fmt.Errorf("%w: %s is uid %d's, this is uid %d", ErrNotOwner, runDir, ownerOf(st), os.Geteuid())
	}
	n, err := Load(runDir)
	if err != nil {
		return -1, err
	}
	exe, err := os.Executable()
	if err != nil {
		return -1, err
	}
	args := n.enterArgs(opts.HostNetwork)
	if opts.HostTree && n.View == ViewMinimal && !n.Inside {
		if args, err = outerArgs(runDir); err != nil {
			return -1, err
		}
	}
	args = append(args, "--", exe)
	cmd := exec.Command("nsenter", append(args, argv...)...)
	cmd.Env = opts.Env
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	if opts.Dir == "" {
		opts.Dir, _ = os.Getwd()
	}
	cmd.Env = append(cleanEnv(cmd.Env), envRole+"="+roleEnter, envDir+"="+opts.Dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = opts.Stdin, opts.Stdout, opts.Stderr
	cmd.ExtraFiles = opts.Files
	return runForwarding(ctx, cmd)
}

// enterArgs returns nsenter's arguments for this node and caller.
func (n *Node) enterArgs(hostNetwork bool) []string {
	args := []string{"--target", strconv.Itoa(n.ChildPID)}
	if !n.Inside {
		if !n.Nested {
			args = append(args, "--user", "--preserve-credentials")
		}
		args = append(args, "--mount", "--pid", "--ipc", "--uts")
		if n.CgroupNS {
			args = append(args, "--cgroup")
		}
	}
	if !hostNetwork && n.NetNS != "" {
		args = append(args, "--net="+n.NetNS)
	}
	return args
}

// outerArgs returns nsenter's arguments for the user namespace around a node: the parent
// is in it, and has locked the run directory.
func outerArgs(runDir string) ([]string, error) {
	pid, err := holder(runDir)
	if err == nil && pid == 0 {
		err = ErrNoNode
	}
	return []string{"--target", strconv.Itoa(pid), "--user", "--preserve-credentials", "--mount"}, err
}

// enterStopTimeout is how long a command may take to end once ctx has.
const enterStopTimeout = 20 * time.Second

// runForwarding runs nsenter, whose child is the command.
func runForwarding(ctx context.Context, cmd *exec.Cmd) (int, error) {
	signals := make(chan os.Signal, 16)
	// A terminal's own signals reach the command by its process group.
	signal.Notify(signals, unix.SIGTERM, unix.SIGHUP, unix.SIGINT, unix.SIGQUIT)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return -1, fmt.Errorf("run nsenter (package util-linux): %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	done := ctx.Done()
	for {
		select {
		case sig := <-signals:
			if sig == unix.SIGTERM || sig == unix.SIGHUP {
				signalChildren(cmd, sig.(unix.Signal))
			}
		case <-done:
			signalChildren(cmd, unix.SIGTERM)
			done = nil
			defer time.AfterFunc(enterStopTimeout, func() { _ = cmd.Process.Kill() }).Stop()
		case err := <-ended:
			var exit *exec.ExitError
			if err == nil {
				return 0, nil
			}
			if !errors.As(err, &exit) {
				return -1, fmt.Errorf("run nsenter: %w", err)
			}
			if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
				return 128 + int(ws.Signal()), nil
			}
			return exit.ExitCode(), nil
		}
	}
}

// signalChildren signals the command that nsenter waits for, or nsenter itself
// where it has replaced itself by the command.
func signalChildren(cmd *exec.Cmd, sig unix.Signal) {
	pid := strconv.Itoa(cmd.Process.Pid)
	b, _ := os.ReadFile("/proc/" + pid + "/task/" + pid + "/children")
	children := strings.Fields(string(b))
	if len(children) == 0 {
		_ = cmd.Process.Signal(sig)
	}
	for _, c := range children {
		if n, err := strconv.Atoi(c); err == nil {
			_ = unix.Kill(n, sig)
		}
	}
}

// runEnterRole is what nsenter executes in the node: it becomes the command.
func runEnterRole() error {
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("set the parent death signal: %w", err)
	}
	if dir := os.Getenv(envDir); os.Chdir(dir) != nil {
		if err := os.Chdir("/"); err != nil {
			return err
		}
	}
	argv := os.Args[1:]
	path, err := exec.LookPath(argv[0])
	if err != nil {
		fmt.Fprintf(os.Stderr, "subpod: %v\n", err)
		return &exitError{argv[0], 127}
	}
	err = unix.Exec(path, argv, cleanEnv(os.Environ()))
	fmt.Fprintf(os.Stderr, "subpod: execute %s in the node: %v\n", path, err)
	return &exitError{argv[0], 126}
}
