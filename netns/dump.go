package netns

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// dumpTries is how often Dump asks: with pods coming and going all the time, a few
// dumps in a row are interrupted, not so many.
const dumpTries = 50

// Dump repeats a netlink dump until nothing changed while the kernel gave it: one
// that was interrupted may have left out what was there all the time (NLM_F_DUMP_INTR,
// Documentation/userspace-api/netlink/intro.rst).
func Dump[T any](list func() ([]T, error)) (out []T, err error) {
	for range dumpTries {
		if out, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return out, err
}
