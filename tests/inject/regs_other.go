//go:build !amd64

package inject

import "golang.org/x/sys/unix"

// Supported says whether this machine's registers are known here.
const Supported = false

var legacyEffects map[uint64]kind

func skipCall(int) error              { return unix.ENOSYS }
func setResult(int, unix.Errno) error { return unix.ENOSYS }
