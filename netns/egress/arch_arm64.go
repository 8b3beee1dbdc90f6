package egress

import "golang.org/x/sys/unix"

// auditArch is what seccomp calls this machine.
const auditArch = unix.AUDIT_ARCH_AARCH64
