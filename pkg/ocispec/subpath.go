package ocispec

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/openat2"
)

// ImageSubPath resolves Mount.image_sub_path inside a mounted image: links in it
// are followed, none leads out of root. ErrInvalid
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
	fd, err := openat2.InRoot(dir, sub, unix.O_PATH)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return "", invalid("image sub path %.80q does not exist in the image", sub)
	}
	if err != nil {
		return "", fmt.Errorf("image sub path %.80q: %w", sub, err)
	}
	defer unix.Close(fd)
	return os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
}
