package ocispec

import (
	"errors"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// idMapped asks for a mount with its own ID mapping, after trying whether the
// kernel would make it: it demands CAP_SYS_ADMIN in the user namespace that mounted
// the file system (mount_setattr(2)), which for the host's own is never ours.
func (b *builder) idMapped(mount *specs.Mount, m *runtimeapi.Mount) error {
	if b.Namespaces.User == "" {
		return errors.New("ID mappings need a pod with a user namespace of its own")
	}
	if !b.Features.IDMappedMounts {
		return fmt.Errorf("ID mappings: the runtime handler %q does not know ID-mapped mounts", b.Handler)
	}
	if len(m.GetUidMappings()) == 0 || len(m.GetGidMappings()) == 0 {
		return errors.New("ID mappings for users and for groups must come together")
	}
	if err := tryIDMap(mount.Source, b.Namespaces.User); err != nil {
		return fmt.Errorf("the kernel refuses an ID-mapped mount of %s: %w (only file systems mounted inside the "+
			"node's user namespace can be mapped without root)", mount.Source, err)
	}
	mount.UIDMappings, mount.GIDMappings = specMappings(mappings(m.GetUidMappings())), specMappings(mappings(m.GetGidMappings()))
	return nil
}

// tryIDMap maps a detached clone of the mount, which is thrown away.
func tryIDMap(source, userNS string) error {
	user, err := unix.Open(userNS, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open user namespace: %w", err)
	}
	defer unix.Close(user)
	tree, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open_tree: %w", err)
	}
	defer unix.Close(tree)
	err = unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{
		Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(user),
	})
	if err != nil {
		return fmt.Errorf("mount_setattr: %w", err)
	}
	return nil
}
