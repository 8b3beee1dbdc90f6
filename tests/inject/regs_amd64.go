package inject

import "golang.org/x/sys/unix"

// Supported says whether this machine's registers are known here.
const Supported = true

// legacyEffects are calls that newer architectures do without.
var legacyEffects = map[uint64]kind{
	unix.SYS_MKDIR:    {"mkdir", 0, -1, unix.ENOSPC},
	unix.SYS_RMDIR:    {"remove", 0, -1, unix.EIO},
	unix.SYS_UNLINK:   {"remove", 0, -1, unix.EIO},
	unix.SYS_RENAME:   {"rename", 0, -1, unix.EIO},
	unix.SYS_CHMOD:    {"chmod", 0, -1, unix.EIO},
	unix.SYS_CHOWN:    {"chown", 0, -1, unix.EIO},
	unix.SYS_LCHOWN:   {"chown", 0, -1, unix.EIO},
	unix.SYS_TRUNCATE: {"truncate", 0, -1, unix.EIO},
}

// skipCall, at the entry of a call, lets the kernel do nothing.
func skipCall(tid int) error {
	var regs unix.PtraceRegsAmd64
	if err := unix.PtraceGetRegsAmd64(tid, &regs); err != nil {
		return err
	}
	regs.Orig_rax = ^uint64(0)
	return unix.PtraceSetRegsAmd64(tid, &regs)
}

// setResult, at the exit of a call, lets it have failed.
func setResult(tid int, errno unix.Errno) error {
	var regs unix.PtraceRegsAmd64
	if err := unix.PtraceGetRegsAmd64(tid, &regs); err != nil {
		return err
	}
	regs.Rax = uint64(-int64(errno))
	return unix.PtraceSetRegsAmd64(tid, &regs)
}
