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
