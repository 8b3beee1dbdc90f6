package oci

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mountNSID returns the ID of a mount namespace that is never used again
// (NS_GET_MNTNS_ID, ioctl_ns(2)), or 0 on kernels before 6.8.
func mountNSID(ns *os.File) uint64 {
	var id uint64
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, ns.Fd(), unix.NS_GET_MNTNS_ID, uintptr(unsafe.Pointer(&id))); errno != 0 {
		return 0
	}
	return id
}

// pidfdExit returns the exit code of an ended process that someone else has
// reaped. Kernels before 6.15 do not tell.
func pidfdExit(pidfd *os.File) (code int32, ok bool) {
	conn, err := pidfd.SyscallConn()
	if err != nil {
		return 0, false
	}
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	ctlErr := conn.Control(func(fd uintptr) { err = unix.IoctlPidfdInfo(int(fd), &info) })
	if ctlErr != nil || err != nil || info.Mask&unix.PIDFD_INFO_EXIT == 0 {
		return 0, false
	}
	ws := unix.WaitStatus(info.Exit_code)
	if ws.Signaled() {
		return 128 + int32(ws.Signal()), true
	}
	return int32(ws.ExitStatus()), true
}
