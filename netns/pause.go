package netns

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/subpod/subpod/pkg/proc"
	"golang.org/x/sys/unix"
)

// pauseArg is the argument that makes our own binary a pause process (see Dispatch).
// A running server of an earlier version starts the binary that has replaced its own
// with oldPauseArg.
const (
	pauseArg    = "pause"
	oldPauseArg = "pid-keeper"
)

// PauseSpec says how to start the pause process of a shared PID namespace.
type PauseSpec struct {
	Dir  string   // Dir/pid becomes the pin
	Argv []string // a static binary that reaps and waits; nil = DefaultPause
}

// Dispatch runs the pause process when StartPause or Pin started our own binary as
// one, and never returns then. It returns at once in any other process. Call it first
// in main.
func Dispatch() {
	if len(os.Args) != 2 || os.Args[1] != pauseArg && os.Args[1] != oldPauseArg || len(os.Environ()) != 0 {
		return
	}
	pause()
}

// pause is the first process of a PID namespace: it reaps the orphans that the kernel
// reparents to it, and exits on SIGTERM or SIGINT.
func pause() {
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

// DefaultPause returns the command of the pause process: catatonit when a static
// one is in PATH (0.7 MiB of memory), else our own binary (which must call
// Dispatch).
func DefaultPause() ([]string, error) {
	if path, err := exec.LookPath("catatonit"); err == nil && checkStatic(path) == nil {
		return []string{path, "-P"}, nil
	}
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find the binary of the pause process: %w", err)
	}
	return []string{self, pauseArg}, nil
}

// StartPause makes a PID namespace and pins it as Dir/pid. Its first process is the
// pause process, which must live as long as anything shall run in the namespace
// (pid_namespaces(7)): it survives the server, holds none of its files and has an
// empty environment. Unpin kills it and removes the pin. On error, nothing is left.
//
// Whoever shares the namespace and may trace the pause process can look through its
// /proc/1/root. Hence its root is not the node's but a detached, read-only view
// of the one directory that holds its binary.
func StartPause(ctx context.Context, s PauseSpec) (proc.ID, string, error) {
	if err := ctx.Err(); err != nil {
		return proc.ID{}, "", err
	}
	child, err := spawnPause(s.Argv, &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID})
	if err != nil {
		return proc.ID{}, "", fmt.Errorf("start pause process: %w", err)
	}
	path := filepath.Join(s.Dir, "pid")
	id, err := proc.Identify(child.Pid)
	if err == nil {
		err = bind("/proc/"+strconv.Itoa(child.Pid)+"/ns/pid", path)
	}
	if err != nil {
		_ = child.Kill()
		_, _ = child.Wait()
		if !errors.Is(err, os.ErrExist) {
			err = errors.Join(err, unpin(path))
		}
		return proc.ID{}, "", fmt.Errorf("start pause process: %w", err)
	}
	reapLater(child, id)
	return id, path, nil
}

// spawnPause runs argv (nil = DefaultPause) in the namespaces that attr asks
// for, in a session of its own, with /dev/null as its only files.
func spawnPause(argv []string, attr *syscall.SysProcAttr) (*os.Process, error) {
	if len(argv) == 0 {
		var err error
		if argv, err = DefaultPause(); err != nil {
			return nil, err
		}
	}
	if err := checkStatic(argv[0]); err != nil {
		return nil, err
	}
	root, err := detachedView(filepath.Dir(argv[0]))
	if err != nil {
		return nil, err
	}
	defer root.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	// The descriptor is closed by exec; until then the child reaches its new root
	// through it.
	attr.Chroot = "/proc/self/fd/" + strconv.Itoa(int(root.Fd()))
	attr.Setsid = true
	return os.StartProcess("/"+filepath.Base(argv[0]), argv, &os.ProcAttr{
		Dir:   "/",
		Env:   []string{},
		Files: []*os.File{null, null, null},
		Sys:   attr,
	})
}

// detachedView returns a read-only clone of the directory's mount that hangs in
// no mount tree: its ".." is itself.
func detachedView(dir string) (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return nil, fmt.Errorf("clone the mount of %s: %w", dir, err)
	}
	err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{
		Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV,
	})
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make a read-only view of %s: %w", dir, err)
	}
	return os.NewFile(uintptr(fd), dir), nil
}

// checkStatic returns an error when the binary needs a dynamic loader, which the
// pause process's root does not have.
func checkStatic(path string) error {
	f, err := elf.Open(path)
	if err != nil {
		return fmt.Errorf("pause process %s: %w", path, err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("pause process %s is dynamically linked, a static one is needed", path)
		}
	}
	return nil
}
