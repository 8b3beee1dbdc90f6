// Package cgroup detects what of the cgroup tree is delegated to a rootless runtime,
// makes the paths of pods and containers, reads their statistics and removes them.
//
// Only cgroup v2 can be delegated to an unprivileged user (the kernel's
// cgroup-v2.rst, "Delegation"). On a v1 or hybrid machine, or without
// delegation, Delegation.Reason says so and limits are off.
package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Mount is where the cgroup file system is.
const Mount = "/sys/fs/cgroup"

// Drivers, as the config and the CRI's RuntimeConfig know them.
const (
	DriverCgroupfs = "cgroupfs"
	DriverSystemd  = "systemd"
	DriverDisabled = "disabled"
)

// Delegation describes what this process may do with cgroups: the part of the tree
// that is delegated to it. The zero Delegation allows nothing.
type Delegation struct {
	Version     int      // 1, 2, or 0 when there is no cgroup file system
	Hybrid      bool     // v1 controllers beside a v2 tree
	Delegated   bool     // limits can be set: Root is ours to divide
	Controllers []string // those that Root passes on to what is below it
	Swap        bool     // swap can be limited
	Bounded     bool     // a cgroup namespace bounds what its processes may set (mount option nsdelegate)
	Root        string   // absolute directory below Mount under which pods go; "" when disabled
	Driver      string   // one of the Driver constants
	Reason      string   // in words: why this driver, and what would change it
}

// Has reports whether limits of a controller can be set.
func (d Delegation) Has(controller string) bool { return slices.Contains(d.Controllers, controller) }

// Missing returns those controllers that limits of the CRI need, that systemd can
// delegate, and that are not there.
func (d Delegation) Missing() []string {
	var missing []string
	for _, c := range []string{"cpu", "cpuset", "io", "memory", "pids"} {
		if !d.Has(c) {
			missing = append(missing, c)
		}
	}
	return missing
}

// Enabled reports whether containers get cgroups at all.
func (d Delegation) Enabled() bool { return d.Driver == DriverCgroupfs || d.Driver == DriverSystemd }

// probe is where Detect looks; tests give another one.
type probe struct {
	mount, self string
	mounts      string // mountinfo
	leaf        string
	manager     func() error // why systemd's user manager cannot be asked
}

// Detect looks at the machine. It changes nothing. wanted is the configured
// driver: "auto" (or ""), or one of the Driver constants; one that cannot work
// gives DriverDisabled and its reason. leaf is the name of the cgroup into which
// the daemon's own processes have moved, "" when they have not: a cgroup that
// passes controllers on may hold no process itself (cgroup-v2.rst, "No Internal
// Process Constraint"), so pods go beside it.
func Detect(wanted, leaf string) Delegation {
	return probe{mount: Mount, self: "/proc/self/cgroup", mounts: "/proc/self/mountinfo", leaf: leaf, manager: askManager}.detect(wanted)
}

func (p probe) detect(wanted string) Delegation {
	d := Delegation{Driver: DriverDisabled}
	own, v1, err := ownCgroup(p.self)
	var st unix.Statfs_t
	mountErr := unix.Statfs(p.mount, &st)
	switch {
	case wanted == DriverDisabled:
		d.Reason = "cgroups are disabled in the configuration"
	case err != nil:
		d.Reason = "no cgroups: " + err.Error()
	case mountErr == nil && st.Type == unix.CGROUP2_SUPER_MAGIC && own != "":
		// What is mounted decides, as for OCI runtimes and the kubelet: a private
		// view of v2 may have been made on a hybrid machine.
		d.Version = 2
		p.chooseV2(&d, wanted, own)
		d.Bounded = p.bounded()
	case v1:
		d.Version, d.Hybrid = 1, own != ""
		d.Reason = "this machine uses cgroup v1 controllers, which cannot be delegated to a user; " +
			"boot with systemd.unified_cgroup_hierarchy=1"
	default:
		d.Version = 2
		d.Reason = p.mount + " is not a cgroup v2 file system here"
	}
	return d
}

// chooseV2 prefers a subtree that this process may write itself.
func (p probe) chooseV2(d *Delegation, wanted, own string) {
	if wanted == DriverSystemd {
		p.chooseSystemd(d, own)
		return
	}
	root := filepath.Join(p.mount, own)
	if p.leaf == "" || filepath.Base(root) != p.leaf {
		d.Reason = "the daemon's cgroup is not delegated to it alone; start subpod as a systemd user service with Delegate=yes"
		return
	}
	root = filepath.Dir(root)
	if err := writable(root); err != nil {
		d.Reason = fmt.Sprintf("the daemon's cgroup is not delegated (%v); start subpod as a systemd user service with Delegate=yes", err)
		return
	}
	d.Delegated, d.Driver, d.Root = true, DriverCgroupfs, root
	d.Controllers = words(root, "cgroup.subtree_control")
	d.Swap = d.Has("memory") && exists(filepath.Join(p.mount, own, "memory.swap.max"))
	d.Reason = "cgroup " + root + " is delegated to the daemon"
}

func (p probe) chooseSystemd(d *Delegation, own string) {
	slice := userSlice(p.mount, own)
	if slice == "" {
		d.Reason = "the systemd driver needs a systemd user manager, and cgroup " + own + " belongs to none"
		return
	}
	if err := p.manager(); err != nil {
		d.Reason = "the systemd driver needs systemd's user manager: " + err.Error()
		return
	}
	d.Delegated, d.Driver, d.Root = true, DriverSystemd, slice
	d.Controllers = words(slice, "cgroup.controllers")
	d.Swap = exists(filepath.Join(slice, "memory.swap.max"))
	d.Reason = "systemd's user manager makes scopes below " + slice
}

// bounded reports whether the file system was mounted with nsdelegate, as systemd does: the
// files of a cgroup namespace's root that are its parent's affair, its limits, cannot be
// written from inside (cgroup-v2.rst, "Model of Delegation").
func (p probe) bounded() bool {
	f, err := os.Open(p.mounts)
	if err != nil {
		return false
	}
	defer f.Close()
	// The option is the superblock's, so that each mount of it has it.
	mounts, err := mountinfo.GetMountsFromReader(f, mountinfo.FSTypeFilter("cgroup2"))
	return err == nil && slices.ContainsFunc(mounts, func(m *mountinfo.Info) bool {
		return m.Mountpoint == p.mount && slices.Contains(strings.Split(m.VFSOptions, ","), "nsdelegate")
	})
}

// writable checks what delegation gives (cgroup-v2.rst, "Model of Delegation"):
// the directory, cgroup.procs and cgroup.subtree_control.
func writable(dir string) error {
	for _, name := range []string{"", "cgroup.procs", "cgroup.subtree_control"} {
		path := filepath.Join(dir, name)
		if err := unix.Faccessat(unix.AT_FDCWD, path, unix.W_OK, unix.AT_EACCESS); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}

// ownCgroup returns this process's v2 cgroup ("" without one) and whether any v1
// hierarchy exists.
func ownCgroup(path string) (own string, v1 bool, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", false, err
	}
	defer f.Close()
	found := false
	s := bufio.NewScanner(f)
	for s.Scan() {
		parts := strings.SplitN(s.Text(), ":", 3)
		if len(parts) != 3 {
			continue
		}
		found = true
		if parts[0] == "0" {
			own = parts[2]
		} else {
			v1 = true
		}
	}
	if err := s.Err(); err != nil {
		return "", false, err
	}
	if !found {
		return "", false, errors.New(path + " is empty")
	}
	return own, v1, nil
}

// words reads a control file that holds a list; nil when it is not there.
func words(dir, name string) []string {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return nil
	}
	return strings.Fields(string(b))
}

// userSlice returns the directory of user@UID.service that own lies in, or that
// belongs to this session's user.
func userSlice(mount, own string) string {
	parts := strings.Split(own, "/")
	for i, part := range parts {
		if strings.HasPrefix(part, "user@") && strings.HasSuffix(part, ".service") {
			return filepath.Join(mount, filepath.Join(parts[:i+1]...))
		}
		uid, isUser := strings.CutPrefix(strings.TrimSuffix(part, ".slice"), "user-")
		if isUser {
			dir := filepath.Join(mount, filepath.Join(parts[:i+1]...), "user@"+uid+".service")
			if _, err := os.Stat(dir); err == nil {
				return dir
			}
		}
	}
	return ""
}

// userBus returns the socket of the user's D-Bus, "" when there is none.
func userBus() string {
	if a, ok := strings.CutPrefix(os.Getenv("DBUS_SESSION_BUS_ADDRESS"), "unix:path="); ok {
		path, _, _ := strings.Cut(a, ",")
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		if path := filepath.Join(dir, "bus"); exists(path) && exists(filepath.Join(dir, "systemd")) {
			return path
		}
	}
	return ""
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
