package netns

import (
	"errors"
	"fmt"
	"io/fs"
)

// SkipDAD turns off duplicate address detection (RFC 4862, 5.4) for interfaces that
// are made later in the network namespace at nsPath ("" = the caller's own):
// addresses there are given out, and need not wait a second for other owners.
// Idempotent. A kernel without IPv6 is fine.
func SkipDAD(nsPath string) error {
	err := ApplySysctls(nsPath, map[string]string{"net.ipv6.conf.default.accept_dad": "0"})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("turn off duplicate address detection: %w", err)
	}
	return nil
}
