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
// options, which 128 layers fill only with names relative to the store: the
// mount is made by a thread of its own that has the store as its working
// directory and is thrown away.
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
	if len(data) >= os.Getpagesize() {
		return fmt.Errorf("mount overlay on %s: %d layers do not fit in one page of mount options", m.target, len(m.lowers))
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
		result <- unix.Mount("overlay", m.target, "overlay", 0, data)
	}()
	if err := <-result; err != nil {
		return fmt.Errorf("mount overlay on %s (%s): %w", m.target, data, err)
	}
	return nil
}

// mountFuse mounts with fuse-overlayfs. The program goes into the background by
// itself once the mount is there; it runs in a session of its own and inherits
// none of our descriptors, so it outlives this process.
func (m overlayMount) mountFuse(ctx context.Context, program string) error {
	extra := []string{}
	if m.upper != "" {
		extra = append(extra, "volatile")
	}
	if len(m.uids) > 0 {
		extra = append(extra, "uidmapping="+fuseMapping(m.uids), "gidmapping="+fuseMapping(m.gids))
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "-o", m.data(extra...), m.target)
	cmd.Dir = m.base
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	// A daemon that keeps our pipe open must not hold us up.
	cmd.WaitDelay = 2 * time.Second
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s on %s: %w: %s", program, m.target, err, bytes.TrimSpace(stderr.Bytes()))
	}
	if ok, err := isMountPoint(m.target); err != nil || !ok {
		return fmt.Errorf("%s on %s: it reported success, but nothing is mounted (%v): %s", program, m.target, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return nil
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

// mountAlive reports whether the file system mounted on path still answers: a
// FUSE mount does not once its process is dead.
func mountAlive(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil
}

// unmount takes away everything that is mounted on path, however many times.
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
