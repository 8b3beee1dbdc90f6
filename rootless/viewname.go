package rootless

import (
	"errors"

	"golang.org/x/sys/unix"
)

// Views: what the node's mount namespace shows of the host (Config.View).
const (
	// ViewFull is the host's whole tree, with some directories made writable.
	ViewFull = "full"
	// ViewMinimal is the programs and the configuration that the node needs, and its
	// own directories. What a mount of a container names comes in through the broker.
	ViewMinimal = "minimal"
	// ViewAuto is ViewMinimal where the host allows it, else ViewFull.
	ViewAuto = "auto"
)

// Views lists what Config.View can be set to, the default first.
func Views() []string { return []string{ViewFull, ViewMinimal, ViewAuto} }

// view decides what is left to the host, and returns why it came out otherwise than
// one might expect.
func (c Config) view(h Host) (view, reason string) {
	switch {
	case c.View != ViewAuto && c.View != ViewMinimal:
		return c.View, ""
	case h.UID == 0, c.View == ViewAuto && h.InUserNS():
		return ViewFull, "the daemon is in a container, which shows no more than it was given"
	case c.HostCgroupNS:
		return ViewFull, "cgroup_manager = \"systemd\" needs the session bus, which starts programs outside of the node"
	case c.View == ViewAuto && errors.Is(unix.MountSetattr(-1, "", unix.AT_EMPTY_PATH, &unix.MountAttr{}), unix.ENOSYS):
		return ViewFull, "the kernel has no mount_setattr (Linux 5.12)"
	}
	return ViewMinimal, ""
}
