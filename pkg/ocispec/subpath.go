package ocispec

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// ImageSubPath resolves Mount.image_sub_path inside a mounted image: links in it
// are followed, none leads out of root (openat2(2), RESOLVE_IN_ROOT). ErrInvalid
// when it does not exist, as the CRI demands. root must be read-only, else the
// answer could be outdated at once.
func ImageSubPath(root, sub string) (string, error) {
	if sub == "" {
		return root, nil
	}
	if filepath.IsAbs(sub) || !filepath.IsLocal(sub) {
		return "", invalid("image sub path %.80q does not stay inside of the image", sub)
	}
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("open image %s: %w", root, err)
	}
	defer unix.Close(dir)
	fd, err := unix.Openat2(dir, sub, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return "", invalid("image sub path %.80q does not exist in the image", sub)
	}
	if err != nil {
		return "", fmt.Errorf("image sub path %.80q: %w", sub, err)
	}
	defer unix.Close(fd)
	return os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
}
