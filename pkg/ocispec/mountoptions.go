package ocispec

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// mountAttr is what an option sets and clears of a mount (mount_setattr(2)).
type mountAttr struct{ set, clear uint64 }

// mountOptions are the options that a request may add. Others would change what
// is mounted, not how. Those without an attribute are the file system's own.
var mountOptions = map[string]mountAttr{
	"noexec":        {set: unix.MOUNT_ATTR_NOEXEC},
	"exec":          {clear: unix.MOUNT_ATTR_NOEXEC},
	"nodev":         {set: unix.MOUNT_ATTR_NODEV},
	"dev":           {clear: unix.MOUNT_ATTR_NODEV},
	"nosuid":        {set: unix.MOUNT_ATTR_NOSUID},
	"suid":          {clear: unix.MOUNT_ATTR_NOSUID},
	"noatime":       {set: unix.MOUNT_ATTR_NOATIME, clear: unix.MOUNT_ATTR__ATIME},
	"relatime":      {set: unix.MOUNT_ATTR_RELATIME, clear: unix.MOUNT_ATTR__ATIME},
	"strictatime":   {set: unix.MOUNT_ATTR_STRICTATIME, clear: unix.MOUNT_ATTR__ATIME},
	"atime":         {},
	"norelatime":    {},
	"nostrictatime": {},
	"nodiratime":    {set: unix.MOUNT_ATTR_NODIRATIME},
	"diratime":      {clear: unix.MOUNT_ATTR_NODIRATIME},
	"nosymfollow":   {set: unix.MOUNT_ATTR_NOSYMFOLLOW},
	"sync":          {},
	"dirsync":       {},
}

// checkMountOptions refuses unknown options, and those that the kernel would not
// set on a bind mount of src: in a user namespace the access-time mode of the
// host's mounts is locked, and so are their restrictions (mount_namespaces(7)).
// The OCI runtimes cannot be left to find out: crun 1.8 then gives up all options
// of the mount without a word.
func (b *builder) checkMountOptions(src string, options []string) error {
	var want mountAttr
	for _, o := range options {
		attr, ok := mountOptions[o]
		if !ok {
			name, _, _ := strings.Cut(o, "=") // what follows may be a password
			return fmt.Errorf("mount option %.40q is not a restriction or access-time mode of a mount", name)
		}
		want.set = want.set&^attr.clear | attr.set
		want.clear = want.clear&^attr.set | attr.clear
	}
	if want == (mountAttr{}) || b.Host.MountFlags == nil {
		return nil
	}
	err := tryMountAttr(src, want)
	if errors.Is(err, unix.ENOSYS) {
		return nil // before Linux 5.12
	}
	if err != nil {
		return fmt.Errorf("the kernel refuses the mount options %s on %s: %w (what the host has set on its mounts is locked in a user namespace)",
			strings.Join(slices.Sorted(slices.Values(options)), ","), src, err)
	}
	return nil
}

// tryMountAttr sets the attributes on a detached clone of the mount, which is
// thrown away. Who may not make one cannot mount either.
func tryMountAttr(src string, want mountAttr) error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, src, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if errors.Is(err, unix.EPERM) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open_tree: %w", err)
	}
	defer unix.Close(tree)
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: want.set, Attr_clr: want.clear}); err != nil {
		return fmt.Errorf("mount_setattr: %w", err)
	}
	return nil
}
