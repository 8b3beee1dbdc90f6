package netns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/netns/pause"
	"github.com/subpod/subpod/pkg/proc"
)

// pauseTimeout bounds a pause process's start until it has given everything up.
const pauseTimeout = 10 * time.Second

// startPause makes a PID namespace, pins it and returns its first process, which must
// live as long as anything shall run in the namespace (pid_namespaces(7)). It survives
// the server; Unpin kills it and removes the pin. On error, nothing is left.
//
// Whoever shares the namespace may look into the process, or trace it: so it has
// nothing (see the package pause). It is in those namespaces of the pod that the
// calling thread is in, and in new ones instead of the node's.
func (s PinSpec) startPause(ctx context.Context) (proc.ID, error) {
	if err := ctx.Err(); err != nil {
		return proc.ID{}, err
	}
	child, err := s.spawnPause(&syscall.SysProcAttr{Cloneflags: uintptr(s.pauseFlags())})
	if err != nil {
		return proc.ID{}, fmt.Errorf("start pause process: %w", err)
	}
	path := filepath.Join(s.Dir, "pid")
	id, err := proc.Identify(child.Pid)
	if err == nil {
		err = bind("/proc/"+strconv.Itoa(child.Pid)+"/ns/pid", path)
	}
	if err != nil {
		_ = child.Kill()
		_, _ = child.Wait()
		return proc.ID{}, fmt.Errorf("start pause process: %w", err)
	}
	reapLater(child, id)
	return id, nil
}

// pauseFlags are the namespaces that a pause process gets for itself: all that it would
// share with the node otherwise.
func (s PinSpec) pauseFlags() int {
	const all = unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS
	return unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | all&^s.cloneFlags()
}

// spawnPause starts the pause process, and returns once it has given everything up.
func (s PinSpec) spawnPause(attr *syscall.SysProcAttr) (*os.Process, error) {
	setup := pause.Setup{UID: s.PauseUID, GID: s.PauseGID, KeepGroups: setgroupsDenied()}
	program, err := pause.New(setup)
	if err != nil {
		return nil, err
	}
	return spawn(program, attr)
}

// spawnWaiter starts a process that holds the namespaces of attr until it is killed.
func spawnWaiter(attr *syscall.SysProcAttr) (*os.Process, error) {
	program, err := pause.NewWaiter()
	if err != nil {
		return nil, err
	}
	return spawn(program, attr)
}

// spawn runs the program in the namespaces that attr asks for, in a session of its own
// and without files, and returns once it reports that it waits.
func spawn(program *pause.Program, attr *syscall.SysProcAttr) (*os.Process, error) {
	exe, err := executable(program.ELF)
	if err != nil {
		return nil, err
	}
	defer exe.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	attr.Setsid = true
	files := make([]*os.File, pause.Ready+1)
	files[pause.Ready] = w
	// The descriptor is closed by exec; until then the child finds it in /proc.
	child, err := os.StartProcess("/proc/self/fd/"+strconv.Itoa(int(exe.Fd())), []string{"pause"}, &os.ProcAttr{
		Dir: "/", Env: []string{}, Files: files, Sys: attr,
	})
	w.Close()
	if err != nil {
		return nil, err
	}
	_ = r.SetReadDeadline(time.Now().Add(pauseTimeout))
	report, err := io.ReadAll(io.LimitReader(r, 64)) // up to the end: the program has let go of it
	if err == nil {
		err = program.Check(report)
	}
	if err != nil {
		_ = child.Kill()
		_, _ = child.Wait()
		return nil, fmt.Errorf("prepare: %w", err)
	}
	return child, nil
}

// executable returns a file without a name that has the given content. It is sealed,
// and no other pod's process executes it: whoever opens it by /proc/1/exe can change
// nothing.
func executable(content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("pause", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3
		fd, err = unix.MemfdCreate("pause", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, fmt.Errorf("memfd_create (is the sysctl vm.memfd_noexec 2?): %w", err)
	}
	f := os.NewFile(uintptr(fd), "pause")
	if _, err := f.Write(content); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return nil, errors.Join(fmt.Errorf("seal: %w", err), f.Close())
	}
	return f, nil
}

// setgroupsDenied reports whether nobody in this user namespace may call setgroups(2):
// one that was made without privileges.
func setgroupsDenied() bool {
	b, err := os.ReadFile("/proc/self/setgroups")
	return err == nil && strings.TrimSpace(string(b)) == "deny"
}
