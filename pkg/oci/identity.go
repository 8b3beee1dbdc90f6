package oci

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/proc"
)

// image distinguishes two program images of one process: its executable and
// where its stack starts. execve(2) changes both (the latter is random).
type image struct {
	Dev   uint64 `json:"dev"`
	Ino   uint64 `json:"ino"`
	Stack uint64 `json:"stack"`
}

// imageOf returns the program that a process executes. It does not ask the file system that
// the program is on, which may never answer.
func imageOf(pid int) (image, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, fmt.Sprintf("/proc/%d/exe", pid), unix.AT_STATX_DONT_SYNC, unix.STATX_INO, &st); err != nil {
		return image{}, fmt.Errorf("statx /proc/%d/exe: %w", pid, err)
	}
	stat, err := proc.ReadStat(pid)
	if err != nil {
		return image{}, err
	}
	return image{Dev: unix.Mkdev(st.Dev_major, st.Dev_minor), Ino: st.Ino, Stack: stat.StartStack}, nil
}

// mountNS names a container's mount namespace. Inode numbers are used again,
// IDs are not; kernels before 6.8 have no ID (0).
type mountNS struct {
	Inode uint64 `json:"inode"`
	ID    uint64 `json:"id,omitempty"`
}

func mountNSOf(pid int) (mountNS, error) {
	return mountNSIn(fmt.Sprintf("/proc/%d", pid))
}

// mountNSIn reads a process's directory of /proc.
func mountNSIn(dir string) (mountNS, error) {
	ns, err := os.Open(dir + "/ns/mnt")
	if err != nil {
		return mountNS{}, err
	}
	defer ns.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(ns.Fd()), &st); err != nil {
		return mountNS{}, err
	}
	return mountNS{Inode: st.Ino, ID: mountNSID(ns)}, nil
}

// members returns the living processes of the container, its init among them,
// also those that outlived it.
func (c Container) members() ([]proc.ID, error) {
	if c.MountNS.Inode == 0 {
		if c.Init.Alive() {
			return []proc.ID{c.Init}, nil
		}
		return nil, nil
	}
	pids, err := proc.PIDs()
	if err != nil {
		return nil, err
	}
	var found []proc.ID
	for _, pid := range pids {
		id, err := proc.Identify(pid)
		if err == nil && c.isMember(pid) && id.Alive() {
			found = append(found, id)
		}
	}
	return found, nil
}

// isMember reports whether a process is in the container's mount namespace. An
// inode number may have come to stand for another namespace since the
// container was made, so it is not enough.
func (c Container) isMember(pid int) bool {
	dir := fmt.Sprintf("/proc/%d", pid)
	link, err := os.Readlink(dir + "/ns/mnt")
	if err != nil {
		dir = proc.Dir(pid)
		link, err = os.Readlink(dir + "/ns/mnt")
	}
	if err != nil || link != fmt.Sprintf("mnt:[%d]", c.MountNS.Inode) {
		return false
	}
	if c.MountNS.ID != 0 {
		ns, err := mountNSIn(dir)
		return err == nil && ns == c.MountNS
	}
	if c.Init.Alive() {
		return true
	}
	var root, want unix.Stat_t
	return unix.Stat(dir+"/root", &root) == nil && unix.Stat(c.Rootfs, &want) == nil &&
		root.Dev == want.Dev && root.Ino == want.Ino
}
