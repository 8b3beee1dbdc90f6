package rootless

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ID mappings: which IDs the node's user namespace has (Config.IDMapping).
const (
	// IDsAuto is subordinate IDs where the user has some that can be mapped, else
	// IDsSingle; for root of a container that may map them, IDsOwn.
	IDsAuto = "auto"
	// IDsSubordinate maps root to the user and the rest to its subordinate IDs.
	IDsSubordinate = "subordinate"
	// IDsSingle maps root to the user, and nothing else. It needs no newuidmap.
	IDsSingle = "single"
	// IDsOwn maps all IDs of the user namespace around us to themselves.
	IDsOwn = "own"
)

// IDMappings lists what Config.IDMapping can be set to, the default first.
func IDMappings() []string { return []string{IDsAuto, IDsSubordinate, IDsSingle} }

// ResolveAuto returns c with what it leaves to the host ("auto", and uplinks to fall
// back to) decided as Run does, and the reasons set.
func (h Host) ResolveAuto(c Config) Config { return c.resolveAuto(h) }

// resolveAuto decides what Config leaves to the host: the ID mapping and the uplink.
func (c Config) resolveAuto(h Host) Config {
	if c.IDMapping == IDsAuto {
		c.IDMapping, c.IDReason = h.idMapping()
	}
	return c.resolveUplink(h)
}

func (c Config) resolveUplink(h Host) Config {
	if c.Uplink == UplinkAuto {
		c.Uplink, c.UplinkReason = h.uplink()
	}
	return c.fallBack(h).resolveIPv6(h)
}

// idMapping falls back to a single ID only for what cannot be helped from where
// we are, or what no user can be blamed for: a host that has subordinate IDs but
// lacks newuidmap gets an error that asks to install it.
func (h Host) idMapping() (mapping, reason string) {
	if h.UID == 0 {
		return IDsOwn, "root of " + h.Container() + " without CAP_SYS_ADMIN: its IDs are mapped again"
	}
	if p := h.SubIDs(); p != nil {
		return IDsSingle, p.Error()
	}
	if h.NoNewPrivs {
		return IDsSingle, h.IDMappers().Error()
	}
	return IDsSubordinate, "the user's subordinate IDs"
}

// uplink is the host's network where no other can be had: in a container without
// /dev/net/tun. Outside of one the lack is an error, because it can be helped and
// because pods in the host's own network see all that listens on its loopback.
func (h Host) uplink() (uplink, reason string) {
	p := h.Tun()
	if mark := h.Container(); p != nil && mark != "" {
		return UplinkHost, fmt.Sprintf("in a container (%s), and %v", mark, p)
	}
	return UplinkSlirp, "the default"
}

// logChoices logs, once, what was chosen otherwise than one might expect.
func (c Config) logChoices() {
	if c.IDMapping == IDsSingle {
		c.Log.Warn("the node has one user and one group ID: files and processes of images all belong to root, "+
			"containers that ask for other users are refused, and all keep the groups that the user has on this host", "reason", c.IDReason)
	}
	if c.fellBack {
		c.Log.Warn("another uplink than the configured one", "uplink", c.Uplink, "reason", c.UplinkReason, "limits", UplinkLimits(c.Uplink, c.NoIPv6))
	}
	if c.Uplink == UplinkHost {
		c.Log.Warn("pods have no network of their own: all share the one that the daemon was started in",
			"reason", c.UplinkReason)
	}
}

// Rootlesskit gets ID maps by running getsubids, newuidmap and newgidmap. With
// another mapping than subordinate IDs, links of these names to our own binary
// stand before the real ones in PATH.
const (
	linkGetSubIDs = "getsubids"
	linkNewUIDMap = "newuidmap"
	linkNewGIDMap = "newgidmap"
)

// replaceMappers puts the links into the node's directory and that into PATH. The
// processes of the node get the former PATH back by restorePath.
func replaceMappers(c Config) error {
	mapping := c.IDMapping
	if c.outer != nil {
		mapping = IDsOwn // of the outer user namespace, which has what IDMapping says
	}
	if mapping == IDsSubordinate {
		return nil
	}
	dir := mapperDir(c.RunDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, name := range []string{linkGetSubIDs, linkNewUIDMap, linkNewGIDMap} {
		if err := os.Symlink(selfExe, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	for k, v := range map[string]string{envIDs: mapping, "GETSUBIDS": filepath.Join(dir, linkGetSubIDs),
		"PATH": dir + ":" + os.Getenv("PATH")} {
		if err := os.Setenv(k, v); err != nil {
			return err
		}
	}
	return nil
}

// nameUser sets USER and HOME where they are missing and nobody knows the user, as
// in a container with a uid of its own choice: rootlesskit asks for both. It must
// come before a library asks for the first time, whose answer is kept: hence
// before the node's program is executed.
func nameUser(c Config) error {
	if _, err := currentUser(); err == nil {
		return nil
	}
	for k, v := range map[string]string{"USER": strconv.Itoa(os.Geteuid()), "HOME": c.DataDir} {
		if os.Getenv(k) == "" {
			if err := os.Setenv(k, v); err != nil {
				return err
			}
		}
	}
	return nil
}

func restorePath(c Config) error {
	os.Unsetenv("GETSUBIDS")
	os.Unsetenv(envIDs)
	return os.Setenv("PATH", strings.TrimPrefix(os.Getenv("PATH"), mapperDir(c.RunDir)+":"))
}

func mapperDir(runDir string) string { return filepath.Join(nodeDir(runDir), "bin") }

// runMapper is what the links do. Rootlesskit refuses to go on without a range of
// subordinate IDs: what getsubids says here is never mapped.
func runMapper(name string, args []string) error {
	switch name {
	case linkGetSubIDs:
		fmt.Printf("0: none %d 1\n", os.Geteuid()+1)
		return nil
	case linkNewUIDMap:
		return writeIDMap(args, "uid_map", os.Geteuid())
	default:
		return writeIDMap(args, "gid_map", os.Getegid())
	}
}

// writeIDMap writes the map of the process args[0].
func writeIDMap(args []string, file string, own int) error {
	if len(args) == 0 {
		return fmt.Errorf("%s: no process", file)
	}
	dir := filepath.Join("/proc", args[0])
	text := fmt.Sprintf("0 %d 1\n", own)
	switch os.Getenv(envIDs) {
	case IDsOwn:
		window, err := readIDMap("self", file)
		if err != nil {
			return err
		}
		text = ""
		for _, m := range window {
			text += fmt.Sprintf("%d %d %d\n", m.Container, m.Container, m.Size)
		}
	default:
		// Without CAP_SETGID only a namespace that may never call setgroups(2)
		// gets a group (user_namespaces(7)).
		if file == "gid_map" {
			if err := os.WriteFile(filepath.Join(dir, "setgroups"), []byte("deny"), 0); err != nil {
				return fmt.Errorf("deny setgroups: %w", err)
			}
		}
	}
	if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0); err != nil {
		return fmt.Errorf("map %q: %w", strings.TrimSpace(text), err)
	}
	return nil
}

// hasSysAdmin reports whether this process may make namespaces and mounts where
// it is, without a user namespace of its own.
func hasSysAdmin() bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&hdr, &data[0]) == nil && data[0].Effective&(1<<unix.CAP_SYS_ADMIN) != 0
}
