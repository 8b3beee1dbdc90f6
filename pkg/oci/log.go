package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// conmon opens the log by name, at its start and again when it is asked to: it
// opens NAME.tmp, truncates it, renames it to NAME, and exits, which ends the
// container, if one of these fails. So the name that it is given is one in the
// bundle, where nobody else has access, and both names are symbolic links to an
// open file of another process (/proc/PID/fd/N). That file was made by us at the
// container's log path, without following links; conmon's part then succeeds
// whatever happens to the path.

// openLog opens the container's log for a monitor that is about to start.
func openLog(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_APPEND|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open log %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// fdOf returns a file's descriptor, and leaves the file as it is.
func fdOf(f *os.File) int {
	n := -1
	if conn, err := f.SyscallConn(); err == nil {
		_ = conn.Control(func(fd uintptr) { n = int(fd) })
	}
	return n
}

// linkTo makes or replaces a symbolic link.
func linkTo(name, target string) error {
	next := name + ".next"
	if err := removeFile(next); err != nil {
		return err
	}
	if err := os.Symlink(target, next); err != nil {
		return err
	}
	return os.Rename(next, name)
}

// reopenTimeout bounds ReopenLog.
const reopenTimeout = 10 * time.Second

// ReopenLog makes the monitor go on in a new file at the container's log path and
// returns when it does so. It does nothing while the log at that path still is the
// one written to. Where a new file cannot be made, the container goes on logging
// to the file that it has, and the error says why. ErrNotRunning when the
// container has ended; a container without a log has nothing to reopen.
func (e *Executor) ReopenLog(ctx context.Context, id string, c Container) error {
	if c.LogPath == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, reopenTimeout)
	defer cancel()
	if err := e.monitorOf(c).reopen(ctx, id, c); err != nil {
		return fmt.Errorf("reopen log %s of container %s: %w", c.LogPath, id, err)
	}
	return nil
}

func (m conmon) reopen(ctx context.Context, _ string, c Container) error {
	if !c.Conmon.Alive() {
		return ErrNotRunning
	}
	ctl, err := openControl(ctx, c)
	if err != nil {
		return err
	}
	defer ctl.close()
	log, err := c.replaceLog(func(st *unix.Stat_t) (bool, error) { return c.hasOpen(st), nil })
	if log == nil || err != nil {
		return err
	}
	defer log.close()
	if _, err := os.Lstat(filepath.Join(c.Bundle, logLink)); err != nil {
		return c.switchByPath(ctx, ctl, log)
	}
	return c.switchByLink(ctx, ctl, log)
}

// replaceLog makes a new file beside the container's log; nil when what is at the path of
// that is the file which the monitor has, as has reports.
func (c Container) replaceLog(has func(*unix.Stat_t) (bool, error)) (*newLog, error) {
	var st unix.Stat_t
	if unix.Lstat(c.LogPath, &st) == nil {
		if same, err := has(&st); same || err != nil {
			return nil, err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFREG {
			return nil, errLogInTheWay
		}
	}
	log, err := createLog(c.LogPath)
	if err != nil {
		return nil, fmt.Errorf("make a new file, the container logs to its old one meanwhile: %w", err)
	}
	return log, nil
}

var errLogInTheWay = errors.New("what is at this path is not a regular file; remove it, the container logs to its old file meanwhile")

// switchByPath is for a conmon that an earlier server started with the log path
// itself. It finds the new file under the temporary name. It ends, should the
// directory vanish right now.
func (c Container) switchByPath(ctx context.Context, ctl *control, log *newLog) error {
	err := c.switchLog(ctx, ctl, log, c.LogPath+".tmp")
	if err != nil && !errors.Is(err, errSwitching) {
		log.discard()
	}
	return err
}

// switchByLink leads conmon to the new file. A small process holds that open: if
// the server dies now, conmon must find it nevertheless.
func (c Container) switchByLink(ctx context.Context, ctl *control, log *newLog) error {
	holder := exec.Command("sleep", "300")
	holder.ExtraFiles = []*os.File{log.file}
	if err := holder.Start(); err != nil {
		log.discard()
		return fmt.Errorf("hold the new file open: %w", err)
	}
	next := filepath.Join(c.Bundle, nextLogLink)
	err := linkTo(next, fmt.Sprintf("/proc/%d/fd/3", holder.Process.Pid))
	if err == nil {
		err = log.install()
	}
	if err == nil {
		err = c.switchLog(ctx, ctl, log, next)
	}
	if errors.Is(err, errSwitching) {
		go func() { _ = holder.Wait() }()
		return err
	}
	_ = holder.Process.Kill()
	_ = holder.Wait()
	if err != nil {
		log.discard()
		return errors.Join(err, removeFile(next))
	}
	return linkTo(filepath.Join(c.Bundle, logLink), c.LogPath) // for people; conmon needs it no more
}

// errSwitching is returned when it is not known whether conmon has the new file.
var errSwitching = errors.New("conmon was told to go on in a new file and has not done so yet")

// switchLog has conmon reopen its log and returns when it has the new file
// open and has renamed tmp. After an error other than errSwitching it never will.
func (c Container) switchLog(ctx context.Context, ctl *control, log *newLog, tmp string) error {
	if err := ctl.send(ctx, "2 0 0\n"); err != nil {
		return fmt.Errorf("%w; the container logs to its old file", err)
	}
	// conmon has read the line and does nothing else before it has the file.
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), reopenTimeout, errSwitching)
	defer cancel()
	return poll(ctx, func() (bool, error) {
		if _, err := os.Lstat(tmp); err != nil && c.hasOpen(&log.stat) {
			return true, nil
		}
		if !c.Conmon.Alive() {
			return false, ErrNotRunning
		}
		return false, nil
	})
}

// hasOpen reports whether conmon has a file open.
func (c Container) hasOpen(file *unix.Stat_t) bool {
	fds := fmt.Sprintf("/proc/%d/fd", c.Conmon.PID)
	names, _ := os.ReadDir(fds)
	for _, n := range names {
		var st unix.Stat_t
		if unix.Stat(filepath.Join(fds, n.Name()), &st) == nil && st.Dev == file.Dev && st.Ino == file.Ino {
			return true
		}
	}
	return false
}

// newLog is a new file beside a container's log, under a temporary name until it is
// installed.
type newLog struct {
	dir  int // descriptor of the directory
	base string
	file *os.File
	stat unix.Stat_t
}

func (l *newLog) tmp() string { return l.base + ".tmp" }

// createLog makes a new file. No link is followed in the log's directory, where
// others may be able to write, and what is at the temporary name is removed.
func createLog(path string) (_ *newLog, err error) {
	l := &newLog{base: filepath.Base(path)}
	if l.dir, err = unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return nil, &os.PathError{Op: "open", Path: filepath.Dir(path), Err: err}
	}
	if err := unix.Unlinkat(l.dir, l.tmp(), 0); err != nil && err != unix.ENOENT {
		unix.Close(l.dir)
		return nil, &os.PathError{Op: "remove", Path: path + ".tmp", Err: err}
	}
	const flags = unix.O_WRONLY | unix.O_APPEND | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(l.dir, l.tmp(), flags, 0o600)
	if err != nil {
		unix.Close(l.dir)
		return nil, &os.PathError{Op: "create", Path: path + ".tmp", Err: err}
	}
	l.file = os.NewFile(uintptr(fd), path)
	if err := unix.Fstat(fd, &l.stat); err != nil {
		l.discard()
		l.close()
		return nil, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return l, nil
}

// install gives the file its name, in place of what has it.
func (l *newLog) install() error {
	if err := unix.Renameat(l.dir, l.tmp(), l.dir, l.base); err != nil {
		return &os.LinkError{Op: "rename", Old: l.tmp(), New: l.base, Err: err}
	}
	return nil
}

// discard removes the file, under whichever name it is there.
func (l *newLog) discard() {
	for _, name := range []string{l.tmp(), l.base} {
		var st unix.Stat_t
		err := unix.Fstatat(l.dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if err == nil && st.Dev == l.stat.Dev && st.Ino == l.stat.Ino {
			_ = unix.Unlinkat(l.dir, name, 0)
		}
	}
}

func (l *newLog) close() {
	l.file.Close()
	unix.Close(l.dir)
}
