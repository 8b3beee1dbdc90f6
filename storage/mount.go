package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// overlayMount is one overlay to be mounted.
type overlayMount struct {
	target      string
	lowers      []string // uppermost first
	upper, work string   // "" mounts read-only
	base        string   // directory that relative lowers start from; "" when all are absolute
	uids, gids  []IDMap  // fuse-overlayfs only
}

// data renders the mount options that both overlays share.
func (m overlayMount) data(extra ...string) string {
	opts := []string{"lowerdir=" + strings.Join(m.lowers, ":")}
	if m.upper != "" {
		opts = append(opts, "upperdir="+m.upper, "workdir="+m.work)
	}
	return strings.Join(append(opts, extra...), ",")
}

// mountNative mounts with the kernel's overlay. The kernel takes one page of
// options, into which 128 layers fit only with names relative to the store: the
// mount is made by a thread of its own that has the store as its working
// directory and is thrown away. More layers are given one by one.
func (m overlayMount) mountNative() error {
	extra := []string{"userxattr"}
	if m.upper != "" {
		// The writable layer of a container never outlives the machine.
		extra = append(extra, "volatile")
		// Left by a mount that was not undone; the kernel refuses it otherwise.
		work := m.work
		if !filepath.IsAbs(work) {
			work = filepath.Join(m.base, work)
		}
		if err := os.RemoveAll(filepath.Join(work, "work", "incompat", "volatile")); err != nil {
			return err
		}
	}
	data := m.data(extra...)
	mount := func() error { return unix.Mount("overlay", m.target, "overlay", 0, data) }
	if len(data) >= os.Getpagesize() {
		mount = func() error { return m.mountLong(extra) }
	}
	result := make(chan error, 1)
	go func() {
		if m.base != "" {
			runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				result <- fmt.Errorf("unshare working directory: %w", err)
				return
			}
			if err := unix.Chdir(m.base); err != nil {
				result <- fmt.Errorf("chdir %s: %w", m.base, err)
				return
			}
		}
		result <- mount()
	}()
	if err := <-result; err != nil {
		return fmt.Errorf("mount overlay on %s (%s): %w", m.target, data, err)
	}
	return nil
}

// fuseTimeout bounds the start of fuse-overlayfs.
const fuseTimeout = 30 * time.Second

// mountFuse mounts with fuse-overlayfs. The mount is made here, and the program gets
// its end of it, so that we need not wait until it has gone into the background: the
// kernel lets us wait until it answers. It runs in a session of its own and inherits
// no other descriptor of ours, so it outlives this process.
func (m overlayMount) mountFuse(ctx context.Context, program string) error {
	_, err := m.startFuse(ctx, program)
	return err
}

// startFuse is mountFuse with further arguments for the program. It returns the process that
// it has started, which ends as soon as one that it has made is in the background, or with the
// mount where the arguments have "-f".
func (m overlayMount) startFuse(ctx context.Context, program string, args ...string) (pid int, err error) {
	extra := []string{}
	if m.upper != "" {
		extra = append(extra, "volatile")
	}
	if len(m.uids) > 0 {
		extra = append(extra, "uidmapping="+fuseMapping(m.uids), "gidmapping="+fuseMapping(m.gids))
	}
	device, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer device.Close()
	self, err := os.Executable() // what has replaced it since can do the same
	if err != nil {
		return 0, err
	}
	// Without nosuid: programs of images may be setuid, within the user namespace.
	// Permissions are the kernel's to check (fuse(4)).
	options := fmt.Sprintf("fd=%d,rootmode=%o,user_id=0,group_id=0,default_permissions,allow_other", device.Fd(), unix.S_IFDIR)
	if err := unix.Mount("fuse-overlayfs", m.target, "fuse.fuse-overlayfs", unix.MS_NODEV|unix.MS_NOATIME, options); err != nil {
		return 0, fmt.Errorf("mount fuse on %s: %w", m.target, err)
	}
	cmd := exec.Command(program, append([]string{"-o", m.data(extra...), fmt.Sprint("/dev/fd/", fuseDevice)}, args...)...) // libfuse takes it for a mount that is there
	cmd.Dir, cmd.ExtraFiles = m.base, []*os.File{device}
	cmd.Env = append(os.Environ(), fusermountEnv+"="+self)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	// A daemon that keeps our pipe open must not block us.
	cmd.WaitDelay = 2 * time.Second
	if err := startUnder(m.fuseRules(cmd.Path, self), cmd); err != nil {
		return 0, errors.Join(fmt.Errorf("%s on %s: %w", program, m.target, err), unmount(m.target))
	}
	device.Close() // from now on the mount's other end dies with the program
	ctx, cancel := context.WithTimeout(ctx, fuseTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		_ = cmd.Process.Kill()
		_ = unix.Unmount(m.target, unix.MNT_FORCE) // ends the wait also where a child of the program lives on
	})
	defer stop()
	err = answers(m.target)
	if err == nil && stop() {
		go func() { _ = cmd.Wait() }()
		return cmd.Process.Pid, nil
	}
	left := unmount(m.target) // ends a program that lives
	err = errors.Join(cmd.Wait(), context.Cause(ctx), err)
	return 0, errors.Join(fmt.Errorf("%s on %s: %w: %s", program, m.target, err, bytes.TrimSpace(stderr.Bytes())), left)
}

// answers returns when the file system mounted on path has answered, or an error
// when it never will.
func answers(path string) error {
	var st unix.Statfs_t
	return unix.Statfs(path, &st)
}

// isMountPoint asks the kernel whether something is mounted on path. A path
// that does not exist is no mount point; one whose FUSE process has died is.
func isMountPoint(path string) (bool, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT|unix.AT_STATX_DONT_SYNC, 0, &st)
	switch {
	case errors.Is(err, unix.ENOENT):
		return false, nil
	case errors.Is(err, unix.ENOTCONN):
		return true, nil
	case err != nil:
		return false, fmt.Errorf("statx %s: %w", path, err)
	}
	if st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT != 0 {
		return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
	}
	return mountinfo.Mounted(path) // before Linux 5.8
}

// mountAlive reports whether the file system mounted on path still answers. A FUSE
// mount does not once its process is dead. One that does not answer within fuseTimeout (its
// process is stopped) is aborted, and counts as dead too.
func mountAlive(ctx context.Context, path string) (bool, error) {
	answered := make(chan error, 1)
	go func() { answered <- answers(path) }()
	select {
	case err := <-answered:
		return err == nil, nil
	case <-ctx.Done():
		return false, fmt.Errorf("%s does not answer: %w", path, context.Cause(ctx))
	case <-time.After(fuseTimeout):
		_ = unix.Unmount(path, unix.MNT_FORCE) // ends the wait
		return false, nil
	}
}

// unmount unmounts everything that is mounted on path, however many times.
// Idempotent. What is busy is detached: it goes when its last user does.
func unmount(path string) error {
	for range 32 {
		mounted, err := isMountPoint(path)
		if err != nil || !mounted {
			return err
		}
		for try := 0; ; try++ {
			err = unix.Unmount(path, unix.UMOUNT_NOFOLLOW)
			if !errors.Is(err, unix.EBUSY) || try == 2 {
				break
			}
			time.Sleep(5 * time.Millisecond)
		}
		if errors.Is(err, unix.EBUSY) {
			err = unix.Unmount(path, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
		}
		if err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
	return fmt.Errorf("unmount %s: still mounted", path)
}

// bind mounts source on target, read-only if asked.
func bind(source, target string, readOnly bool) error {
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s on %s: %w", source, target, err)
	}
	if !readOnly {
		return nil
	}
	flags := uintptr(unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV)
	var st unix.Statfs_t
	if err := unix.Statfs(target, &st); err == nil {
		// Flags of the mount below are locked in a user namespace: a remount
		// without them is refused. These three have the same bits in both calls.
		flags |= uintptr(st.Flags) & (unix.MS_NOEXEC | unix.MS_NOATIME | unix.MS_NODIRATIME)
	}
	if err := unix.Mount("", target, "", flags, ""); err != nil {
		return errors.Join(fmt.Errorf("make %s read-only: %w", target, err), unmount(target))
	}
	return nil
}
