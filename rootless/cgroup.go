package rootless

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	cgroupRoot = "/sys/fs/cgroup"
	// nodeCgroup is the leaf into which the daemon's processes move in a
	// delegated cgroup, so that controllers can be enabled above it (the "no
	// internal processes" rule of cgroups(7)).
	nodeCgroup = "subpod-node"
)

// cgroupFacts is how the host presents cgroups to this process.
type cgroupFacts struct {
	unified bool   // /sys/fs/cgroup is cgroup v2
	legacy  bool   // it is something else (v1 or hybrid)
	own     string // directory of the own cgroup, when unified
}

// detectCgroup looks at the mount that runtimes look at.
func detectCgroup() cgroupFacts {
	var st unix.Statfs_t
	if err := unix.Statfs(cgroupRoot, &st); err != nil {
		return cgroupFacts{}
	}
	if st.Type != unix.CGROUP2_SUPER_MAGIC {
		entries, err := os.ReadDir(cgroupRoot)
		return cgroupFacts{legacy: err == nil && len(entries) > 0}
	}
	f := cgroupFacts{unified: true}
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return f
	}
	for line := range strings.Lines(string(b)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			f.own = filepath.Join(cgroupRoot, path)
		}
	}
	return f
}

// OwnsCgroup reports whether a node that is made by this process can set limits:
// the process is alone in a delegated cgroup v2, such as that of a systemd service
// with Delegate=yes.
func OwnsCgroup() bool { return detectCgroup().delegated() }

// delegated reports whether the own cgroup is ours to divide: writable, and
// with no process in it that is not the daemon. A login scope shared with a
// shell is neither; a systemd unit with Delegate=yes is both.
func (f cgroupFacts) delegated() bool {
	if f.own == "" {
		return false
	}
	for _, name := range []string{"", "cgroup.procs", "cgroup.subtree_control"} {
		if unix.Access(filepath.Join(f.own, name), unix.W_OK) != nil {
			return false
		}
	}
	b, err := os.ReadFile(filepath.Join(f.own, "cgroup.procs"))
	if err != nil {
		return false
	}
	for _, pid := range strings.Fields(string(b)) {
		if pid != strconv.Itoa(os.Getpid()) {
			return false
		}
	}
	return true
}

// evacuate moves this process, the only one in its cgroup, into the leaf, and lets
// the leaf's siblings have every controller that there is. What rootlesskit does
// for a node that is not nested.
func (f cgroupFacts) evacuate() error {
	leaf := filepath.Join(f.own, nodeCgroup)
	if err := os.Mkdir(leaf, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make the daemon's own cgroup: %w", err)
	}
	if err := os.WriteFile(filepath.Join(leaf, "cgroup.procs"), []byte("0"), 0); err != nil {
		return fmt.Errorf("move the daemon to %s: %w", leaf, err)
	}
	b, err := os.ReadFile(filepath.Join(f.own, "cgroup.controllers"))
	if err != nil {
		return err
	}
	for _, c := range strings.Fields(string(b)) {
		// One that cannot be passed on costs its own limits only.
		_ = os.WriteFile(filepath.Join(f.own, "cgroup.subtree_control"), []byte("+"+c), 0)
	}
	return nil
}

// mountCgroup makes the node's /sys/fs/cgroup agree with its cgroup namespace.
// A legacy or hybrid hierarchy, of which a user can own nothing, is covered by
// an empty tmpfs: crun refuses to start when it sees one.
func mountCgroup(f cgroupFacts, ownNS bool) error {
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	tmpfs := func() error {
		if err := unix.Mount("tmpfs", cgroupRoot, "tmpfs", flags, "mode=755,size=64k"); err != nil {
			return fmt.Errorf("mount tmpfs on %s: %w", cgroupRoot, err)
		}
		return nil
	}
	switch {
	case f.legacy:
		return tmpfs()
	case !f.unified:
		// A container without cgroups has an empty directory of sysfs there, with
		// which crun cannot begin anything either.
		if err := tmpfs(); !errors.Is(err, os.ErrNotExist) {
			return err
		}
	case f.unified && ownNS:
		err := unix.Mount("cgroup2", cgroupRoot, "cgroup2", flags, "")
		if errors.Is(err, unix.EBUSY) {
			// The same file system cannot be mounted over its own root.
			if err = tmpfs(); err == nil {
				err = unix.Mount("cgroup2", cgroupRoot, "cgroup2", flags, "")
			}
		}
		if err != nil {
			return fmt.Errorf("mount cgroup2 on %s: %w", cgroupRoot, err)
		}
	}
	return nil
}
