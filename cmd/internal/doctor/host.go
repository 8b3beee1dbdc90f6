package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/cgroup"
	"github.com/subpod/subpod/pkg/config"
	"github.com/subpod/subpod/pkg/landlock"
	"github.com/subpod/subpod/rootless"
)

// Host describes the host to check. ThisHost returns the current one; tests use
// others.
type Host struct {
	rootless.Host
	Config *config.Config
	Getenv func(string) string
	// Release is that of the kernel (uname -r).
	Release string
	// Unconfined is what the kernel cannot keep helper programs from, "" for nothing.
	Unconfined string
	// Subpod is the path of the subpod program.
	Subpod string
	Cgroup cgroup.Delegation
	// Overlay tries to mount both kinds of overlay below a directory.
	Overlay func(dir string) (Overlay, error)
	// Disk describes the file system of a directory. It must return within a few
	// seconds, even if a network file system hangs.
	Disk func(dir string) (Disk, error)
	// WayOut is what ways to the outside the network has.
	WayOut rootless.WayOut
	// Node loads the record of a running node.
	Node func(runDir string) (*rootless.Node, error)
}

// Overlay contains the reason why each kind of overlay cannot be mounted, "" if it
// can be (storage.Finding, as JSON).
type Overlay struct{ BackingFS, Native, Fuse string }

// Disk is the file system of a directory.
type Disk struct {
	Type        string // as in /proc/filesystems, or a hexadecimal number
	Free, Total uint64 // bytes available to the user
	FreeInodes  uint64
	Inodes      uint64 // 0: the file system does not count them
}

// ThisHost describes the current host. server is the path of subpod-server, which
// tries to mount overlays: this program does not link containers/storage.
func ThisHost(cfg *config.Config, getenv func(string) string, server string) Host {
	h := Host{Host: rootless.ThisHost(), Config: cfg, Getenv: getenv, Node: rootless.Load, Disk: statDisk, WayOut: rootless.HostWayOut()}
	h.Path = withSbin(h.Path)
	h.Subpod = filepath.Join(filepath.Dir(h.Executable), "subpod")
	h.Cgroup = cgroup.Detect(cfg.Runtime.CgroupManager, "")
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		h.Release = unix.ByteSliceToString(u.Release[:])
	}
	h.Unconfined = landlock.Rules{Files: []landlock.Files{{Access: landlock.Change}}, NoListen: true, NoConnect: true, Scoped: true}.Missing()
	h.Overlay = func(dir string) (Overlay, error) { return tryOverlay(server, dir, cfg.Storage.MountProgram) }
	return h
}

// withSbin adds the directories that the daemon also searches.
func withSbin(path string) string { return path + ":/usr/local/sbin:/usr/sbin:/sbin" }

// ProbeFlag makes subpod-server try the overlays and print an Overlay.
const ProbeFlag = "--probe-overlay"

// tryOverlay runs subpod-server as root of a new user namespace, and as the first process
// of a PID namespace: what it has started and mounted ends with it, also when it is killed.
func tryOverlay(server, dir, mountProgram string) (Overlay, error) {
	var o Overlay
	ctx, cancel := context.WithTimeout(context.Background(), overlayTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, server, ProbeFlag, dir, "--mount-program", mountProgram)
	cmd.WaitDelay = time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}},
		Pdeathsig:   unix.SIGKILL,
	}
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr)))
		}
		return o, fmt.Errorf("try to mount overlays: %w", err)
	}
	return o, json.Unmarshal(out, &o)
}

// fsNames maps the magic numbers of file systems to their names (statfs(2)).
var fsNames = map[int64]string{
	unix.NFS_SUPER_MAGIC: "nfs", 0xff534d42: "cifs", 0x517b: "smb", 0xfe534d42: "smb2", 0x47504653: "gpfs",
	0x0bd00bd0: "lustre", 0x013111a8: "ibrix", 0x00c36400: "ceph", 0x5346414f: "afs", unix.V9FS_MAGIC: "9p",
	unix.FUSE_SUPER_MAGIC: "fuse", unix.TMPFS_MAGIC: "tmpfs", unix.RAMFS_MAGIC: "ramfs",
	unix.OVERLAYFS_SUPER_MAGIC: "overlay", unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs",
	unix.BTRFS_SUPER_MAGIC: "btrfs", 0x2fc12fc1: "zfs", unix.ECRYPTFS_SUPER_MAGIC: "ecryptfs", unix.F2FS_SUPER_MAGIC: "f2fs",
}

// Timeouts of the checks.
const (
	overlayTimeout = 20 * time.Second // trying to mount both kinds of overlay
	diskTimeout    = 5 * time.Second  // statfs(2), which hangs on a dead network file system
	versionTimeout = 3 * time.Second  // a program that prints its version
)

// errHangs reports that a file system does not respond.
var errHangs = fmt.Errorf("no response within %v (a network file system whose server is down?)", diskTimeout)

func statDisk(dir string) (Disk, error) {
	type result struct {
		disk Disk
		err  error
	}
	done := make(chan result, 1)
	go func() {
		var st unix.Statfs_t
		err := unix.Statfs(dir, &st)
		name, ok := fsNames[int64(st.Type)]
		if !ok {
			name = fmt.Sprintf("%#x", st.Type)
		}
		size := uint64(st.Bsize)
		done <- result{Disk{name, st.Bavail * size, st.Blocks * size, st.Ffree, st.Files}, err}
	}()
	select {
	case r := <-done:
		return r.disk, r.err
	case <-time.After(diskTimeout):
		return Disk{}, errHangs
	}
}

// existing returns the nearest existing directory at or above dir.
func (h Host) existing(dir string) string {
	for dir != "/" && dir != "." {
		if st, err := os.Stat(h.File(dir)); err == nil && st.IsDir() {
			break
		}
		dir = filepath.Dir(dir)
	}
	return dir
}
