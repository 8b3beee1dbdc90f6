package inject

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// syscallEntry is what the kernel says at the entry of a call
// (PTRACE_GET_SYSCALL_INFO).
type syscallEntry struct {
	nr   uint64
	args [6]uint64
}

// syscallInfo returns nil at the exit of a call.
func syscallInfo(tid int) (*syscallEntry, bool) {
	var info struct {
		op      uint8
		_       [3]uint8
		arch    uint32
		ip, sp  uint64
		nr      uint64
		args    [6]uint64
		retData uint32
		_       uint32
	}
	const get, entry, exit = 0x420e, 1, 2
	if err := ptrace(get, tid, unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info))); err != nil {
		return nil, false
	}
	switch info.op {
	case entry:
		return &syscallEntry{info.nr, info.args}, true
	case exit:
		return nil, true
	}
	return nil, false
}

// kind says how a call is put into words, and the error with which it can fail.
type kind struct {
	name  string
	path  int // argument that is a path, -1 for none
	fd    int // argument that is a descriptor, -1 for none
	errno unix.Errno
}

var effects = map[uint64]kind{
	unix.SYS_WRITE:             {"write", -1, 0, unix.ENOSPC},
	unix.SYS_PWRITE64:          {"write", -1, 0, unix.ENOSPC},
	unix.SYS_FTRUNCATE:         {"truncate", -1, 0, unix.EIO},
	unix.SYS_FSYNC:             {"fsync", -1, 0, unix.EIO},
	unix.SYS_FDATASYNC:         {"fsync", -1, 0, unix.EIO},
	unix.SYS_OPENAT:            {"create", 1, -1, unix.ENOSPC}, // with O_CREAT
	unix.SYS_MKDIRAT:           {"mkdir", 1, -1, unix.ENOSPC},
	unix.SYS_UNLINKAT:          {"remove", 1, -1, unix.EIO},
	unix.SYS_RENAMEAT:          {"rename", 1, -1, unix.EIO},
	unix.SYS_RENAMEAT2:         {"rename", 1, -1, unix.EIO},
	unix.SYS_LINKAT:            {"link", 1, -1, unix.EIO},
	unix.SYS_SYMLINKAT:         {"symlink", 2, -1, unix.EIO},
	unix.SYS_FCHMODAT:          {"chmod", 1, -1, unix.EIO},
	unix.SYS_FCHOWNAT:          {"chown", 1, -1, unix.EIO},
	unix.SYS_MKNODAT:           {"mknod", 1, -1, unix.ENOSPC},
	unix.SYS_MOUNT:             {"mount", 1, -1, unix.ENOMEM},
	unix.SYS_UMOUNT2:           {"unmount", 0, -1, unix.EIO},
	unix.SYS_MOVE_MOUNT:        {"move_mount", 3, -1, unix.ENOMEM},
	unix.SYS_MOUNT_SETATTR:     {"mount_setattr", 1, -1, unix.ENOMEM},
	unix.SYS_UNSHARE:           {"unshare", -1, -1, unix.ENOMEM},
	unix.SYS_SETNS:             {"setns", -1, 0, unix.ENOMEM},
	unix.SYS_CLONE:             {"start a process", -1, -1, unix.EAGAIN}, // not a thread
	unix.SYS_CLONE3:            {"start a process", -1, -1, unix.EAGAIN},
	unix.SYS_SENDTO:            {"send", -1, 0, unix.ENOBUFS}, // netlink
	unix.SYS_SENDMSG:           {"send", -1, 0, unix.ENOBUFS},
	unix.SYS_KILL:              {"signal", -1, -1, unix.EPERM},
	unix.SYS_PIDFD_SEND_SIGNAL: {"signal", -1, -1, unix.EPERM},
}

// effect puts a call with an effect into words; "" for others.
func (i *Injection) effect(e *syscallEntry) (string, unix.Errno) {
	k, ok := effects[e.nr]
	if !ok {
		k, ok = legacyEffects[e.nr]
	}
	if !ok {
		return "", 0
	}
	switch e.nr {
	case unix.SYS_OPENAT:
		if e.args[2]&unix.O_CREAT == 0 || e.args[2]&unix.O_TRUNC == 0 && i.exists(i.text(e.args[1])) {
			return "", 0
		}
	case unix.SYS_CLONE:
		if e.args[0]&unix.CLONE_THREAD != 0 {
			return "", 0
		}
	case unix.SYS_KILL, unix.SYS_PIDFD_SEND_SIGNAL:
		if e.args[1] == 0 {
			return "", 0 // asks whether the process is there
		}
	case unix.SYS_WRITE, unix.SYS_PWRITE64:
		if e.args[0] <= 2 {
			return "", 0 // the log
		}
	}
	switch {
	case k.path >= 0:
		path := i.text(e.args[k.path])
		if path == "" {
			return "", 0
		}
		return k.name + " " + tidy(path), k.errno
	case k.fd >= 0:
		target, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", i.pid, e.args[k.fd]))
		switch {
		case strings.HasPrefix(target, "anon_inode:"):
			return "", 0 // the runtime's own
		case strings.HasPrefix(target, "socket:") && k.name == "write":
			return "", 0 // answers, requests to a registry
		case strings.HasPrefix(target, "pipe:") && i.plan.Action == Fail:
			return "", 0 // fails only when the reader has died: see the tests of helpers
		case strings.HasPrefix(target, "pipe:") || strings.HasPrefix(target, "socket:"):
			target, _, _ = strings.Cut(target, ":")
		}
		return k.name + " " + tidy(target), k.errno
	}
	return k.name, k.errno
}

// exists reports whether the traced process has a file at an absolute path.
func (i *Injection) exists(path string) bool {
	if !strings.HasPrefix(path, "/") {
		return false
	}
	_, err := os.Lstat(fmt.Sprintf("/proc/%d/root%s", i.pid, path))
	return err == nil
}

// text reads a string of the traced process.
func (i *Injection) text(addr uint64) string {
	var buf [512]byte
	local := []unix.Iovec{{Base: &buf[0]}}
	local[0].SetLen(len(buf))
	n, err := unix.ProcessVMReadv(i.pid, local, []unix.RemoteIovec{{Base: uintptr(addr), Len: len(buf)}}, 0)
	if err != nil {
		// The page after it may not be there.
		left := int(4096 - addr%4096)
		if left >= len(buf) {
			return ""
		}
		local[0].SetLen(left)
		if n, err = unix.ProcessVMReadv(i.pid, local, []unix.RemoteIovec{{Base: uintptr(addr), Len: left}}, 0); err != nil {
			return ""
		}
	}
	if end := bytes.IndexByte(buf[:n], 0); end >= 0 {
		return string(buf[:end])
	}
	return string(buf[:n])
}
