// Package subpath opens and bind-mounts paths inside volumes whose content is
// written by containers: no symbolic link in a volume leads out of it, whenever
// it is made or exchanged (the attacks of CVE-2017-1002101 and CVE-2021-25741).
//
// The rule: a path in a volume is resolved once, by the kernel, to a file
// descriptor, and everything after that uses the descriptor. An OCI runtime
// resolves the source of a mount again, by name, so it is never given a name
// inside the volume: Mount binds what the descriptor refers to onto a directory
// that no container can reach, and that is the source.
package subpath

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/openat2"
)

var (
	// ErrEscapes reports a path that leads out of its volume.
	ErrEscapes = errors.New("path leads out of the volume")
	// ErrUnusable reports a path that can neither be opened nor created.
	ErrUnusable = errors.New("path in the volume cannot be used")
)

// Open opens sub, a relative path without "..", below the directory volume and
// returns an O_PATH descriptor. Symbolic links of the volume are followed as
// long as they stay inside; an absolute link does not. Missing directories are
// created with the mode of the volume, as the kubelet does. The links of volume
// itself are followed. ErrEscapes, ErrUnusable.
func Open(volume, sub string) (*os.File, error) {
	if err := Check(sub); err != nil {
		return nil, err
	}
	root, err := unix.Open(volume, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open volume %s: %w", volume, err)
	}
	defer unix.Close(root)
	fd, err := openat2.Beneath(root, sub, unix.O_PATH)
	if errors.Is(err, unix.ENOENT) {
		fd, err = create(root, sub)
	}
	if err != nil {
		return nil, describe(volume, sub, err)
	}
	return os.NewFile(uintptr(fd), filepath.Join(volume, sub)), nil
}

// Check returns ErrEscapes for a path that is absolute or has a ".." element:
// the API of Kubernetes allows neither.
func Check(sub string) error {
	for element := range strings.SplitSeq(sub, "/") {
		if element == ".." {
			return fmt.Errorf("%w: %.200q has a \"..\" element", ErrEscapes, sub)
		}
	}
	if filepath.IsAbs(sub) || strings.ContainsRune(sub, 0) {
		return fmt.Errorf("%w: %.200q is not a relative path", ErrEscapes, sub)
	}
	return nil
}

func describe(volume, sub string, err error) error {
	switch {
	case errors.Is(err, unix.EXDEV):
		return fmt.Errorf("%w: a symbolic link in %.200q points outside of %s, or is absolute; use a relative link", ErrEscapes, sub, volume)
	case errors.Is(err, unix.ELOOP):
		return fmt.Errorf("%w: %.200q in %s has a link that leads nowhere, or a loop of links", ErrUnusable, sub, volume)
	case errors.Is(err, unix.ENOTDIR):
		return fmt.Errorf("%w: an element of %.200q in %s is not a directory", ErrUnusable, sub, volume)
	}
	return fmt.Errorf("%w: %.200q in %s: %w", ErrUnusable, sub, volume, err)
}

// create makes the missing directories of sub and opens the last one. Each one
// is made in the descriptor of the one above it and opened without following a
// link, so an exchange in between makes it fail and nothing else.
func create(root int, sub string) (int, error) {
	var st unix.Stat_t
	if err := unix.Fstat(root, &st); err != nil {
		return -1, err
	}
	elements := strings.Split(filepath.Clean(sub), "/")
	dir, rest, err := existing(root, elements)
	if err != nil {
		return -1, err
	}
	for _, element := range rest {
		next, err := mkdir(dir, element, st.Mode&0o7777)
		unix.Close(dir)
		if err != nil {
			return -1, err
		}
		dir = next
	}
	return dir, nil
}

// existing opens the longest existing beginning of a path, which is a directory,
// and returns the elements that are left.
func existing(root int, elements []string) (int, []string, error) {
	for i := len(elements) - 1; ; i-- {
		fd, err := openat2.Beneath(root, strings.Join(elements[:i], "/"), unix.O_PATH|unix.O_DIRECTORY)
		if errors.Is(err, unix.ENOENT) && i > 0 {
			continue
		}
		return fd, elements[i:], err
	}
}

// mkdir makes a directory, unless it is there, and opens it. Its mode is exact,
// whatever the umask says.
func mkdir(dir int, name string, mode uint32) (int, error) {
	err := unix.Mkdirat(dir, name, mode)
	made := err == nil
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return -1, err
	}
	// Not O_PATH, which fchmod(2) refuses.
	fd, err := openat2.Beneath(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err == nil && made {
		if err = unix.Fchmod(fd, mode); err != nil {
			unix.Close(fd)
		}
	}
	if err != nil {
		return -1, err
	}
	return fd, nil
}
