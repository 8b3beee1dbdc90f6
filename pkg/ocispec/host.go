package ocispec

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/cgroup"
	"github.com/subpod/subpod/pkg/idmap"
)

// Host is what a container may get from this process: facts that do not change
// while it runs. The zero Host gives nothing; make it with DetectHost.
type Host struct {
	Hostname string
	// Bounding are the capabilities of this process's bounding set, "CAP_…". A
	// container can have no other.
	Bounding []string
	// OOMScoreAdj is our own score: a container gets a higher one. Without
	// CAP_SYS_RESOURCE on the host no child could go below it anyway.
	OOMScoreAdj int
	// HardLimits by name ("RLIMIT_NOFILE"); a limit that is not listed is unlimited.
	HardLimits map[string]uint64
	// UIDMap and GIDMap are the ranges of this user namespace; empty = all IDs.
	UIDMap, GIDMap []idmap.Map
	Seccomp        bool
	AppArmor       bool
	SELinux        bool
	// RecursiveReadOnly: mount_setattr(2) is there (Linux 5.12).
	RecursiveReadOnly bool
	Cgroup            cgroup.Delegation
	// DevRoot is where host devices are, "/dev".
	DevRoot string
	// Cache keeps compiled seccomp profiles; nil compiles each time.
	Cache *SeccompCache
	// MountFlags returns the options of the mount that holds path which a bind of
	// it must keep in a user namespace (mount_namespaces(7), locked flags); nil =
	// none.
	MountFlags func(path string) []string
	// Owned reports whether the namespace at path belongs to the user namespace at
	// user ("" = our own): only then can its /proc, /sys or /dev/mqueue be mounted.
	// nil = always.
	Owned func(path, user string) bool
}

// DetectHost looks at this process and the kernel. It changes nothing.
func DetectHost(delegation cgroup.Delegation) (Host, error) {
	h := Host{Cgroup: delegation, DevRoot: "/dev", Cache: NewSeccompCache(), Owned: ownedBy, HardLimits: map[string]uint64{}}
	var err error
	if h.Hostname, err = os.Hostname(); err != nil {
		return Host{}, fmt.Errorf("own host name: %w", err)
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return Host{}, fmt.Errorf("own capabilities: %w", err)
	}
	if h.Bounding, err = boundingSet(status); err != nil {
		return Host{}, err
	}
	h.Seccomp = bytes.Contains(status, []byte("\nSeccomp:"))
	if h.OOMScoreAdj, err = ownOOMScore(); err != nil {
		return Host{}, err
	}
	for name, resource := range rlimits {
		var r unix.Rlimit
		if err := unix.Getrlimit(resource, &r); err == nil {
			h.HardLimits[name] = r.Max
		}
	}
	if h.UIDMap, err = idmap.Read("/proc/self/uid_map"); err != nil {
		return Host{}, err
	}
	if h.GIDMap, err = idmap.Read("/proc/self/gid_map"); err != nil {
		return Host{}, err
	}
	h.AppArmor = readFirst("/sys/module/apparmor/parameters/enabled") == "Y"
	_, selinuxErr := os.Stat("/sys/fs/selinux/enforce")
	h.SELinux = selinuxErr == nil
	h.RecursiveReadOnly = unix.MountSetattr(-1, "", 0, nil) != unix.ENOSYS
	if !initialUserNS(h.UIDMap) {
		h.MountFlags = mountFlags
	}
	return h, nil
}

func readFirst(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func ownOOMScore() (int, error) {
	n, err := strconv.Atoi(readFirst("/proc/self/oom_score_adj"))
	if err != nil {
		return 0, fmt.Errorf("own oom_score_adj: %w", err)
	}
	return n, nil
}

func initialUserNS(maps []idmap.Map) bool {
	return slices.Equal(maps, []idmap.Map{{Size: 1<<32 - 1}})
}

// ownedBy compares the owner of a namespace with a user namespace (ioctl_ns(2)).
func ownedBy(path, user string) bool {
	if user == "" {
		user = "/proc/self/ns/user"
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	// EPERM: the owner is outside of our own user namespace.
	owner, err := unix.IoctlRetInt(fd, unix.NS_GET_USERNS)
	if err != nil {
		return false
	}
	defer unix.Close(owner)
	var a, b unix.Stat_t
	if unix.Fstat(owner, &a) != nil || unix.Stat(user, &b) != nil {
		return false
	}
	return a.Ino == b.Ino && a.Dev == b.Dev
}

func mountFlags(path string) []string {
	var st unix.Statfs_t
	if unix.Statfs(path, &st) != nil {
		return nil
	}
	var out []string
	for _, f := range []struct {
		flag int64
		name string
	}{{unix.ST_NOSUID, "nosuid"}, {unix.ST_NODEV, "nodev"}, {unix.ST_NOEXEC, "noexec"}, {unix.ST_RDONLY, "ro"}, {unix.ST_NOATIME, "noatime"}} {
		if int64(st.Flags)&f.flag != 0 {
			out = append(out, f.name)
		}
	}
	return out
}

// rlimits are the names of the OCI specification (getrlimit(2)).
var rlimits = map[string]int{
	"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_CPU": unix.RLIMIT_CPU,
	"RLIMIT_DATA": unix.RLIMIT_DATA, "RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS,
	"RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK, "RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE,
	"RLIMIT_NICE": unix.RLIMIT_NICE, "RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_NPROC": unix.RLIMIT_NPROC,
	"RLIMIT_RSS": unix.RLIMIT_RSS, "RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO, "RLIMIT_RTTIME": unix.RLIMIT_RTTIME,
	"RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING, "RLIMIT_STACK": unix.RLIMIT_STACK,
}

// ownNS is the path of one of this process's namespaces.
func ownNS(name string) string { return filepath.Join("/proc/self/ns", name) }

func (h Host) owned(path, user string) bool { return h.Owned == nil || h.Owned(path, user) }
