package doctor

import (
	"fmt"
	"strings"

	"github.com/subpod/subpod/configs"
	"github.com/subpod/subpod/rootless"
)

// kernel checks the version: pidfd_open(2) needs 5.3, overlay in a user namespace
// 5.11, recursive read-only mounts 5.12.
func kernel(h Host) []Result {
	var major, minor int
	if _, err := fmt.Sscanf(h.Release, "%d.%d", &major, &minor); err != nil {
		return one(Info, "", "cannot parse the release %q", h.Release)
	}
	at := func(a, b int) bool { return major > a || major == a && minor >= b }
	switch {
	case !at(5, 3):
		return one(Error, "install a kernel of 5.11 or newer", "Linux %s has no pidfd_open(2)", h.Release)
	case !at(5, 11):
		return one(Warning, "install a kernel of 5.11 or newer", "Linux %s has no overlay in user namespaces: only fuse-overlayfs works", h.Release)
	case !at(5, 12):
		return one(Info, "", "Linux %s: recursive read-only mounts need 5.12", h.Release)
	}
	return one(OK, "", "Linux %s", h.Release)
}

// confinement checks what keeps a program that reads images or packets, and was taken
// over by them, from the user's files and network.
func confinement(h Host) []Result {
	if h.Unconfined != "" {
		return one(Info, "", "%s: helper programs that a hostile image or packet took over are kept from less of the user's", h.Unconfined)
	}
	return one(OK, "", "helper programs that read images and packets are kept to what they need")
}

func userNamespaces(h Host) []Result {
	p := h.UserNS()
	if p == nil {
		if err := h.TryUserNS(); err != nil {
			return one(Error, "inside a container: allow clone, unshare, setns and mount (seccomp: Unconfined)",
				"creating one and mounting in it failed: %v", err)
		}
		if v, ok := h.Sysctl("kernel/apparmor_restrict_unprivileged_userns"); ok && v != 0 {
			return one(OK, "", "restricted by AppArmor, which allows this program")
		}
		return one(OK, "", "creating one and mounting in it works")
	}
	results := problem(Error, p)
	if v, ok := h.Sysctl("kernel/apparmor_restrict_unprivileged_userns"); ok && v != 0 && strings.Contains(p.What, "AppArmor") {
		if profile, err := configs.AppArmorProfile(h.Subpod); err == nil {
			results[0].Fix = "sudo tee /etc/apparmor.d/subpod <<'EOF'\n" + strings.TrimSpace(profile) + "\nEOF\nsudo apparmor_parser -r /etc/apparmor.d/subpod"
		}
	}
	return results
}

func freshProc(h Host) []Result {
	if h.UserNS() != nil || h.TryUserNS() != nil {
		return nil // reported by userNamespaces
	}
	if p := h.Proc(); p != nil {
		return problem(Error, p)
	}
	return one(OK, "", "containers can mount their own")
}

// mapping returns the uplink and the ID mapping that the daemon would choose.
func (h Host) mapping() (uplink, ids string) {
	c := h.resolved()
	return c.Uplink, c.IDMapping
}

// resolved returns the node's configuration with what it leaves to the host decided.
func (h Host) resolved() rootless.Config {
	n := h.Config.Node
	return h.ResolveAuto(rootless.Config{Uplink: n.Uplink, UplinkFallback: n.UplinkFallback, IDMapping: n.IDMapping, IPv6: n.UplinkIPv6,
		SlirpBinary: n.Slirp4netnsPath, PastaBinary: n.PastaPath, UplinkFault: h.UplinkFault})
}

func subordinateIDs(h Host) []Result {
	_, ids := h.mapping()
	switch ids {
	case rootless.IDsOwn:
		return one(OK, "", "root of a container: all IDs of the container are used")
	case rootless.IDsSingle:
		if h.Config.Node.IDMapping == rootless.IDsSingle {
			return one(Info, "", "one user and one group ID, as configured (node.id_mapping)")
		}
	}
	p := h.SubIDs()
	if p != nil {
		level := Warning
		if ids == rootless.IDsSubordinate {
			level = Error
		}
		r := problem(level, p)
		if level == Warning {
			r[0].What += "; the node will have one ID: images with other users, and setgroups(2), will not work"
		}
		return r
	}
	uids, gids := h.SubordinateIDs()
	users, groups := size(uids), size(gids)
	if users < rootless.WantIDs-1 || groups < rootless.WantIDs-1 {
		return one(Warning, h.MoreIDs(), "only %d user and %d group IDs: images may contain files of users up to %d", users, groups, rootless.WantIDs-1)
	}
	return one(OK, "", "%d user and %d group IDs (starting at %d and %d)", users, groups, uids[0].First, gids[0].First)
}

func size(ranges []rootless.SubIDs) (n uint64) {
	for _, r := range ranges {
		n += uint64(r.Size)
	}
	return n
}

func idMappers(h Host) []Result {
	_, ids := h.mapping()
	p := h.IDMappers()
	switch {
	case p == nil:
		return one(OK, "", "newuidmap and newgidmap are installed with the privileges they need")
	case ids == rootless.IDsSubordinate:
		return problem(Error, p)
	default:
		r := problem(Info, p)
		r[0].What += "; not needed with the ID mapping that the node will have"
		return r
	}
}

func tun(h Host) []Result {
	uplink, _ := h.mapping()
	p := h.Tun()
	switch {
	case p == nil:
		return one(OK, "", "can be opened")
	case uplink == rootless.UplinkHost || uplink == rootless.UplinkNone:
		r := problem(Warning, p)
		r[0].What += "; the uplink will be \"" + uplink + "\""
		if uplink == rootless.UplinkHost {
			r[0].What += ": pods share the network that the daemon is started in"
		}
		return r
	default:
		return problem(Error, p)
	}
}

func fuse(h Host) []Result {
	p := h.Fuse()
	switch {
	case p == nil:
		return one(OK, "", "can be opened")
	case h.Config.Storage.Driver == "fuse-overlayfs":
		r := problem(Error, p)
		r[0].Fix += "\nor set storage.driver = \"auto\" (subpod --storage-driver auto daemon)"
		return r
	default:
		return problem(Info, p)
	}
}

// overlay tries to mount overlays in the data directory.
func overlay(h Host) []Result {
	if h.UserNS() != nil || h.TryUserNS() != nil || notInOptions(h.Config.Daemon.DataDir) != "" {
		return nil
	}
	dir := h.existing(h.Config.Daemon.DataDir)
	o, err := h.Overlay(h.File(dir))
	if err != nil {
		return one(Warning, "", "%s: %v", dir, err)
	}
	native := one(OK, "", "native: the kernel's overlay works on %s (%s)", dir, o.BackingFS)[0]
	if o.Native != "" {
		native = one(Info, "", "native: %s", oneLine(o.Native))[0]
	}
	fused := one(OK, "", "fuse-overlayfs works on %s (%s)", dir, o.BackingFS)[0]
	if o.Fuse != "" {
		fused = one(Info, "", "fuse-overlayfs: %s", oneLine(o.Fuse))[0]
	}
	driver := h.Config.Storage.Driver
	const useAuto = "set storage.driver = \"auto\" (subpod --storage-driver auto daemon)"
	const elsewhere = "set daemon.data_dir to a directory on a local disk (subpod --root DIRECTORY daemon; in a container: a volume)"
	switch {
	case o.Native != "" && o.Fuse != "" && driver != "vfs":
		native.Level, fused.Level, fused.Fix = Error, Error, elsewhere
		if driver == "auto" && h.Config.Storage.AllowVFS {
			native.Level, fused.Level = Warning, Warning
			fused.What += "; vfs is allowed, and copies every layer for every container"
		}
	case driver == "native" && o.Native != "":
		native.Level, native.Fix = Error, useAuto
	case driver == "fuse-overlayfs" && o.Fuse != "":
		fused.Level, fused.Fix = Error, useAuto
	}
	return []Result{native, fused}
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
