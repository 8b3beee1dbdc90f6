package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
)

// What a container can write lies on a tmpfs of its pod, with a bound of its own, or on
// the disk, never on the tmpfs of the run directory itself: whoever fills that stops the
// daemon, and all else of the user's session.
//
//	pods/ID/tmpfs/shm        /dev/shm, as big as everywhere in the field
//	pods/ID/tmpfs/etc        hosts, hostname, resolv.conf
//	pods/ID/volumes/NAME     each memory volume (api.AnnotationMemoryVolumes)
const (
	tmpfsDir = "tmpfs"
	etcDir   = tmpfsDir + "/etc"
	shmDir   = tmpfsDir + "/shm"
	// oldShmDir is where a server before this layout mounted /dev/shm.
	oldShmDir = "shm"

	// tmpfsOptions are of the one file system of /dev/shm and /etc: it counts as
	// /dev/shm's size, since little is ever in /etc.
	tmpfsOptions = "mode=0755,nr_inodes=64k"
	// defaultShmSize is what a pod gets that asks for nothing else, in bytes.
	defaultShmSize = 64 << 20
)

// mountTmpfs mounts the pod's tmpfs with its directories.
func mountTmpfs(dir string, size uint64) error {
	options := fmt.Sprintf("%s,size=%d", tmpfsOptions, size)
	if err := mount("shm", filepath.Join(dir, tmpfsDir), unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, options); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(dir, etcDir), 0o755); err != nil {
		return fmt.Errorf("make the pod's files: %w", err)
	}
	shm := filepath.Join(dir, shmDir)
	if err := errors.Join(os.Mkdir(shm, 0o700), os.Chmod(shm, os.ModeSticky|0o777)); err != nil {
		return fmt.Errorf("make the pod's /dev/shm: %w", err)
	}
	return nil
}

// mountVolumes mounts the pod's memory volumes, writable for all users in containers,
// as the kubelet makes them. Programs may be run from them.
func mountVolumes(dir string, volumes map[string]uint64) error {
	for name, size := range volumes {
		options := "mode=0777"
		if size > 0 {
			options += fmt.Sprintf(",size=%d", size)
		}
		if err := mount("tmpfs", filepath.Join(dir, api.MemoryVolumes, name), unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
			return err
		}
	}
	return nil
}

func mount(source, path string, flags uintptr, options string) error {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return fmt.Errorf("make the pod's tmpfs: %w", err)
	}
	if err := unix.Mount(source, path, "tmpfs", flags, options); err != nil {
		return fmt.Errorf("mount the pod's tmpfs on %s (%s): %w", path, options, err)
	}
	return nil
}

// unmountAll detaches every tmpfs of the pod. Idempotent.
func unmountAll(dir string) error {
	errs := []error{unmount(filepath.Join(dir, tmpfsDir)), unmount(filepath.Join(dir, oldShmDir))}
	volumes, err := os.ReadDir(filepath.Join(dir, api.MemoryVolumes))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	for _, v := range volumes {
		errs = append(errs, unmount(filepath.Join(dir, api.MemoryVolumes, v.Name())))
	}
	return errors.Join(errs...)
}

// unmount detaches path; what is not mounted or not there is fine.
func unmount(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	return nil
}

// parseShmSize returns the size of the pod's /dev/shm in bytes (api.AnnotationShmSize).
func parseShmSize(cfg *runtimeapi.PodSandboxConfig) (uint64, error) {
	text := cfg.GetAnnotations()[api.AnnotationShmSize]
	if text == "" {
		return defaultShmSize, nil
	}
	size, err := strconv.ParseUint(text, 10, 63)
	if err != nil || size == 0 {
		return 0, invalid("annotation %s: %q is not a size in bytes", api.AnnotationShmSize, text)
	}
	return size, nil
}

// maxMemoryVolumes bounds what one request makes the server mount.
const maxMemoryVolumes = 256

// parseMemoryVolumes returns the sizes of the pod's memory volumes, in bytes, by name
// (api.AnnotationMemoryVolumes); 0 is the kernel's default.
func parseMemoryVolumes(cfg *runtimeapi.PodSandboxConfig) (map[string]uint64, error) {
	text := cfg.GetAnnotations()[api.AnnotationMemoryVolumes]
	if text == "" {
		return nil, nil
	}
	var out map[string]uint64
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		return nil, invalid("annotation %s: %w", api.AnnotationMemoryVolumes, err)
	}
	if len(out) > maxMemoryVolumes {
		return nil, invalid("annotation %s: %d volumes; at most %d", api.AnnotationMemoryVolumes, len(out), maxMemoryVolumes)
	}
	for name, size := range out {
		if name == "" || len(name) > 63 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return nil, invalid("annotation %s: the name %q is not a DNS label", api.AnnotationMemoryVolumes, name)
		}
		if size > math.MaxInt64 {
			return nil, invalid("annotation %s: %d bytes are more than there can be", api.AnnotationMemoryVolumes, size)
		}
	}
	return out, nil
}
