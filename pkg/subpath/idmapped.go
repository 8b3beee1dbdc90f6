package subpath

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ErrNotMappable reports a file system that the kernel does not show with other IDs.
var ErrNotMappable = errors.New("the kernel refuses an ID-mapped mount")

// MapIDs returns a detached clone of the mount of source, with what is mounted below it,
// whose files have the IDs that they have in the user namespace at the path userNS
// (mount_setattr(2), MOUNT_ATTR_IDMAP). What is mounted below it keeps its own. Attach
// mounts it. ErrNotMappable.
func MapIDs(source, userNS string) (*os.File, error) {
	user, err := unix.Open(userNS, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open user namespace: %w", err)
	}
	defer unix.Close(user)
	fd, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return nil, fmt.Errorf("clone the mount of %s: %w", source, err)
	}
	tree := os.NewFile(uintptr(fd), source)
	err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(user)})
	if err != nil {
		tree.Close()
		return nil, fmt.Errorf("%w of %s: %w%s", ErrNotMappable, source, err, mappingHint(err))
	}
	return tree, nil
}

// mappingHint explains an error of mount_setattr(2).
func mappingHint(err error) string {
	switch {
	case errors.Is(err, unix.EPERM):
		return " (only file systems mounted inside the node's user namespace, and not ID-mapped already, can be mapped without root)"
	case errors.Is(err, unix.EINVAL):
		return " (its file system does not support it)"
	}
	return ""
}
