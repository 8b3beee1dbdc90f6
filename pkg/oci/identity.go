package oci

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/proc"
)

// image tells two program images of one process apart: its executable and
// where its stack starts. execve(2) changes both (the latter is random).
type image struct {
	Dev   uint64 `json:"dev"`
	Ino   uint64 `json:"ino"`
	Stack uint64 `json:"stack"`
}

func imageOf(pid int) (image, error) {
	var st unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d/exe", pid), &st); err != nil {
		return image{}, fmt.Errorf("stat /proc/%d/exe: %w", pid, err)
	}
	stat, err := readProcStat(pid)
	if err != nil {
		return image{}, err
	}
	return image{Dev: uint64(st.Dev), Ino: st.Ino, Stack: stat.stack}, nil
}

// mountNS names a container's mount namespace. Inode numbers are used again,
// IDs are not; kernels before 6.8 have no ID (0).
type mountNS struct {
	Inode uint64 `json:"inode"`
	ID    uint64 `json:"id,omitempty"`
}

func mountNSOf(pid int) (mountNS, error) {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
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
	pids, err := pids()
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
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err != nil || link != fmt.Sprintf("mnt:[%d]", c.MountNS.Inode) {
		return false
	}
	if c.MountNS.ID != 0 {
		ns, err := mountNSOf(pid)
		return err == nil && ns == c.MountNS
	}
	if c.Init.Alive() {
		return true
	}
	var root, want unix.Stat_t
	return unix.Stat(fmt.Sprintf("/proc/%d/root", pid), &root) == nil && unix.Stat(c.Rootfs, &want) == nil &&
		root.Dev == want.Dev && root.Ino == want.Ino
}

// pids lists the processes of our PID namespace.
func pids() ([]int, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, n := range names {
		if pid, err := strconv.Atoi(n); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// procStat is the part of /proc/PID/stat (proc(5)) that is used here.
type procStat struct {
	state         byte
	ppid, session int
	stack         uint64
}

func readProcStat(pid int) (procStat, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return procStat{}, proc.ErrGone
	}
	if err != nil {
		return procStat{}, err
	}
	// The fields after the command name, which may hold anything; the first of
	// them is field 3.
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 26 {
		return procStat{}, fmt.Errorf("/proc/%d/stat has only %d fields", pid, len(fields))
	}
	st := procStat{state: fields[0][0]}
	if st.ppid, err = strconv.Atoi(fields[1]); err != nil {
		return procStat{}, err
	}
	if st.session, err = strconv.Atoi(fields[3]); err != nil {
		return procStat{}, err
	}
	if st.stack, err = strconv.ParseUint(fields[25], 10, 64); err != nil {
		return procStat{}, err
	}
	return st, nil
}
