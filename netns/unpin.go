package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/subpod/subpod/pkg/proc"
	"golang.org/x/sys/unix"
)

// Unpin kills the pause process of a shared PID namespace (and with it everything that
// runs there), then unmounts and removes all pins in dir, also those of an
// interrupted Pin. The kernel takes the namespaces down as soon as no process is
// in them. Other files in dir are left alone. Idempotent; nil when dir does not
// exist.
func Unpin(dir string) error {
	errs := []error{endPause(filepath.Join(dir, "pid"))}
	forgetConnections(filepath.Join(dir, "net"))
	for _, name := range pinNames {
		errs = append(errs, unpin(filepath.Join(dir, name)))
	}
	return errors.Join(errs...)
}

// forgetConnections makes the kernel give up connections that no process has any
// more after one try to tell the other end. It tries eight times else, and keeps the
// network namespace with its interfaces for that long: up to 100 seconds, when the
// other end is gone too. Best effort: it only shortens the clean-up.
func forgetConnections(path string) {
	if _, err := os.Lstat(path); err != nil {
		return
	}
	_ = ApplySysctls(path, map[string]string{"net.ipv4.tcp_orphan_retries": "1"})
}

func unpin(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		if errors.Is(err, unix.EINVAL) { // no mount (any more)
			break
		}
		if err != nil {
			return fmt.Errorf("unpin %s: %w", path, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("unpin: %w", err)
	}
	return nil
}

// endPause kills the first process of the PID namespace pinned at path. It is
// looked for by the namespace, not by a stored identity: that also finds the
// pause process of a server that was killed before it could write one down.
func endPause(path string) error {
	var pin unix.Stat_t
	err := unix.Lstat(path, &pin)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at pin %s: %w", path, err)
	}
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return fmt.Errorf("look for the pause process of %s: %w", path, err)
	}
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		id, err := proc.Identify(pid)
		var ns unix.Stat_t
		if err != nil || unix.Stat("/proc/"+p.Name()+"/ns/pid", &ns) != nil {
			continue
		}
		if ns.Ino != pin.Ino || ns.Dev != pin.Dev || !isInit(pid) {
			continue
		}
		if err := id.Signal(unix.SIGKILL); err != nil && !errors.Is(err, proc.ErrGone) {
			return fmt.Errorf("end the pause process of %s: %w", path, err)
		}
	}
	return nil
}

// isInit reports whether the process is the first of its PID namespace.
func isInit(pid int) bool {
	pids, err := proc.NamespacePIDs(pid)
	return err == nil && pids[len(pids)-1] == 1
}
