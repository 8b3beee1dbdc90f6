package storage

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// mountLong mounts with the kernel's overlay, which is given one lower directory at a
// time (fsconfig(2), "lowerdir+": Linux 6.8; at most 500 layers).
func (m overlayMount) mountLong(flags []string) error {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("fsopen: %w", err)
	}
	defer unix.Close(fs)
	if err := m.configure(fs, flags); err != nil {
		if errors.Is(err, unix.EINVAL) {
			err = fmt.Errorf("%d layers do not fit in one page of mount options, and Linux takes more since 6.8 only: %w", len(m.lowers), err)
		}
		return err
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("fsmount: %w", err)
	}
	defer unix.Close(mount)
	return unix.MoveMount(mount, "", unix.AT_FDCWD, m.target, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

func (m overlayMount) configure(fs int, flags []string) error {
	options := make([][2]string, 0, len(m.lowers)+3)
	options = append(options, [2]string{"source", "overlay"})
	for _, lower := range m.lowers {
		options = append(options, [2]string{"lowerdir+", lower})
	}
	if m.upper != "" {
		options = append(options, [2]string{"upperdir", m.upper}, [2]string{"workdir", m.work})
	}
	for _, o := range options {
		if err := unix.FsconfigSetString(fs, o[0], o[1]); err != nil {
			return fmt.Errorf("option %s=%s: %w", o[0], o[1], err)
		}
	}
	for _, flag := range flags {
		if err := unix.FsconfigSetFlag(fs, flag); err != nil {
			return fmt.Errorf("option %s: %w", flag, err)
		}
	}
	return unix.FsconfigCreate(fs)
}
