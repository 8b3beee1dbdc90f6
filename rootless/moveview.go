package rootless

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// moveIntoView makes what buildView has put together this process's root directory and
// the host's tree unreachable. It runs once, as PID 1 of the node, in the copy of the
// outer mount namespace that is the node's own.
func moveIntoView(c Config) error {
	root := viewDir(c.RunDir)
	// A clone: the mount itself is locked, as all that came from the namespace above.
	if err := unix.Mount(root, root, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("clone the node's root directory: %w", err)
	}
	if err := unix.Mount("/proc", filepath.Join(root, "proc"), "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move /proc: %w", err)
	}
	// Rootlesskit has pinned the node network namespace in the tree that goes away.
	pin := filepath.Join(nodeDir(c.RunDir), fileNetNS)
	if c.ownNetwork() {
		if err := unix.Mount(pin, filepath.Join(root, pin), "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("keep the node network namespace: %w", err)
		}
	}
	if err := os.Chdir(root); err != nil {
		return err
	}
	// The former root comes to lie on the new one, on top (pivot_root(2)).
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("change the root directory: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the host's tree: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	// Not there any more, and programs would fail for it.
	return errors.Join(os.Unsetenv("TMPDIR"), mountOwn(c))
}

// mountOwn mounts what belongs to the node's namespaces.
func mountOwn(c Config) error {
	const flags = unix.MS_NOSUID | unix.MS_NOEXEC
	options := "newinstance,ptmxmode=0666,mode=0620,gid=5"
	gids, err := readIDMap("self", "gid_map")
	if err != nil {
		return err
	}
	if countIDs(gids) <= 5 {
		options = strings.TrimSuffix(options, ",gid=5")
	}
	if err := unix.Mount("devpts", "/dev/pts", "devpts", flags, options); err != nil {
		return fmt.Errorf("mount /dev/pts: %w", err)
	}
	// Where it holds one of our own directories it stays a part of the root directory.
	if slices.ContainsFunc(c.Seen, func(dir string) bool { return within(dir, "/dev/shm") }) {
		return mountMqueue(flags)
	}
	if err := unix.Mount("shm", "/dev/shm", "tmpfs", flags|unix.MS_NODEV, "mode=1777"); err != nil {
		return fmt.Errorf("mount /dev/shm: %w", err)
	}
	return mountMqueue(flags)
}

func mountMqueue(flags uintptr) error {
	if err := unix.Mount("mqueue", "/dev/mqueue", "mqueue", flags|unix.MS_NODEV, ""); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("mount /dev/mqueue: %w", err)
	}
	return nil
}

// mountMinimal is mountNode for ViewMinimal.
func mountMinimal(c Config, ownCgroupNS bool) error {
	cg := detectCgroup()
	if err := moveIntoView(c); err != nil {
		return err
	}
	if err := mountCgroup(cg, ownCgroupNS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("make / shared in the node: %w", err)
	}
	return nil
}
