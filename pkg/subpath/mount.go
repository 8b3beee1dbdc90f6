package subpath

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Mount binds sub of the directory volume, with what is mounted below it, onto
// dir/name and returns that path. dir is made if it is missing; it must be out
// of the reach of containers. Release removes the mount; a mount made of it
// stays. ErrEscapes, ErrUnusable.
func Mount(dir, name, volume, sub string) (string, error) {
	source, err := Open(volume, sub)
	if err != nil {
		return "", err
	}
	defer source.Close()
	// From descriptor to path: nothing is looked up in the volume again.
	tree, err := unix.OpenTree(int(source.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE)
	if err != nil {
		return "", fmt.Errorf("clone the mount of %s: %w", source.Name(), err)
	}
	file := os.NewFile(uintptr(tree), source.Name())
	defer file.Close()
	return Attach(dir, name, file)
}

// Attach mounts tree, as open_tree(2) clones it, on dir/name and returns that path.
// dir is made if it is missing. Release removes the mount. fs.ErrExist where
// something has that name.
func Attach(dir, name string, tree *os.File) (string, error) {
	target := filepath.Join(dir, name)
	if err := makeTarget(dir, target, tree); err != nil {
		return "", fmt.Errorf("make the mount point for %s: %w", tree.Name(), err)
	}
	return target, AttachOn(target, tree)
}

// AttachOn mounts tree, as open_tree(2) clones it, on an existing target of its kind.
func AttachOn(target string, tree *os.File) error {
	if err := unix.MoveMount(int(tree.Fd()), "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount %s on %s: %w", tree.Name(), target, err)
	}
	return nil
}

// makeTarget makes a directory, or an empty file, to mount source on. The
// directories above it can be passed by all users of the node: a pod's own root
// is one of them.
func makeTarget(dir, target string, source *os.File) error {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	info, err := source.Stat()
	if err != nil {
		return err
	}
	if info.IsDir() {
		return os.Mkdir(target, 0o700)
	}
	f, err := os.OpenFile(target, os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// Release removes the mounts in dir and dir itself. It never removes content of
// a volume: what cannot be unmounted stays, and is an error. Idempotent.
func Release(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		target := filepath.Join(dir, e.Name())
		err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: not mounted
			errs = append(errs, fmt.Errorf("unmount %s: %w", target, err))
			continue
		}
		// Never recursive: an empty mount point goes, anything else stays.
		errs = append(errs, os.Remove(target))
	}
	return errors.Join(append(errs, os.Remove(dir))...)
}

// ReleaseAll is Release of all directories in dir.
func ReleaseAll(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var errs []error
	for _, e := range entries {
		errs = append(errs, Release(filepath.Join(dir, e.Name())))
	}
	return errors.Join(errs...)
}
