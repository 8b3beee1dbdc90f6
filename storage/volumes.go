package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	securejoin "github.com/cyphar/filepath-securejoin"
	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/openat2"
	"github.com/subpod/subpod/pkg/tree"
)

// Volume is a directory that belongs to a root file system: for a VOLUME of its image.
type Volume struct {
	// Path is where the container sees it, Dir where it is on the node.
	Path string `json:"path"`
	Dir  string `json:"dir"`
}

// MakeVolumes makes a directory for each of paths, which are absolute paths in the
// mounted root file system id. It has the content of the directory at that path, with
// owners, modes, times, extended attributes, hard links and holes, or is empty and of the
// container's root where there is none. Paths are followed through the links of the image,
// and never out of it; Volume.Path is what they lead to. One for which wanted is false
// then, and one that is a file or leads through one, gets no volume: these are returned in
// left. What lies in a volume that is below another is copied into the former only.
// The directories last until Delete; after an error there are none. Idempotent: what was
// made stays as the container has left it, also when less is asked for, and only what a
// call which was cut short has left is replaced. ErrRootfsNotFound, ErrNoSpace,
// ErrTooLarge where the volumes together hold more than Limits.Size and Limits.Entries
// allow an image.
func (r *Rootfs) MakeVolumes(ctx context.Context, id string, paths []string, wanted func(string) bool) (made []Volume, left []string, err error) {
	if len(paths) == 0 {
		return nil, nil, nil
	}
	dir := r.store.dirs.rootfs(id)
	if !validID().MatchString(id) {
		return nil, nil, fmt.Errorf("%w: %q", ErrBadID, id)
	}
	unlock, err := r.locks.lock(ctx, dir)
	if err != nil {
		return nil, nil, err
	}
	defer unlock()
	rec, err := readRecord(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("%w: %s", ErrRootfsNotFound, id)
	}
	if err != nil {
		return nil, nil, err
	}
	parent := filepath.Join(dir, "volumes")
	if kept := keptVolumes(rec, parent, paths, wanted); kept != nil {
		return kept, nil, nil
	}
	if err := tree.RemoveAll(parent); err != nil {
		return nil, nil, err
	}
	if err := os.Mkdir(parent, 0o711); err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, tree.RemoveAll(parent))
		}
	}()
	root := r.mountPoint(dir)
	made, left, err = planVolumes(root, parent, paths, wanted)
	if err != nil {
		return nil, nil, fmt.Errorf("volumes of %s: %w", id, err)
	}
	c := treeCopy{ctx: ctx, limits: r.store.opts.Limits, skip: map[string]bool{}}
	for _, v := range made {
		c.skip[v.Path] = true
	}
	for _, v := range made {
		err := makeVolume(&c, root, rec, v)
		if sentinelOf(err) == ErrNoSpace && !errors.Is(err, ErrNoSpace) {
			err = fmt.Errorf("%w: %w", ErrNoSpace, err)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("make volume %s of %s: %w", v.Path, id, err)
		}
	}
	return made, left, recordVolumes(dir, rec, made, paths)
}

// recordVolumes keeps what was made for paths in the record of a root file system.
func recordVolumes(dir string, rec record, made []Volume, paths []string) error {
	rec.Volumes, rec.VolumesAsked = nil, paths
	for _, v := range made {
		rec.Volumes = append(rec.Volumes, Volume{Path: v.Path, Dir: filepath.Base(v.Dir)})
	}
	return writeRecord(dir, rec)
}

// keptVolumes returns the volumes that an earlier call has made, nil where it has not been
// asked for all of paths.
func keptVolumes(rec record, parent string, paths []string, wanted func(string) bool) []Volume {
	asked := func(path string) bool { return slices.Contains(rec.VolumesAsked, path) }
	for _, path := range paths {
		if !asked(path) {
			return nil
		}
	}
	kept := []Volume{}
	for _, v := range rec.Volumes {
		if wanted(v.Path) {
			kept = append(kept, Volume{Path: v.Path, Dir: filepath.Join(parent, v.Dir)})
		}
	}
	return kept
}

// planVolumes finds out where paths lead to, and which of them get a volume.
func planVolumes(root, parent string, paths []string, wanted func(string) bool) (planned []Volume, left []string, err error) {
	seen := map[string]bool{}
	for _, path := range paths {
		at, err := securejoin.SecureJoin(root, path)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", path, err)
		}
		v := Volume{Path: filepath.Join("/", strings.TrimPrefix(at, root)), Dir: filepath.Join(parent, strconv.Itoa(len(planned)))}
		if seen[v.Path] {
			continue
		}
		seen[v.Path] = true
		err = unix.ENOTDIR
		if wanted(v.Path) {
			var source *os.File
			if source, err = openInRoot(root, v.Path); err == nil {
				source.Close()
			}
		}
		switch {
		case errors.Is(err, unix.ENOTDIR):
			left = append(left, path)
		case err != nil && !errors.Is(err, unix.ENOENT):
			return nil, nil, fmt.Errorf("%s: %w", path, err)
		default:
			planned = append(planned, v)
		}
	}
	return planned, left, nil
}

// CopyOut makes the directory dir with the content of the directory at path in the mounted
// root file system id, as MakeVolumes does. Nothing is made where there is no such
// directory. ErrRootfsNotFound, ErrNoSpace, ErrTooLarge.
func (r *Rootfs) CopyOut(ctx context.Context, id, path, dir string) error {
	at := r.store.dirs.rootfs(id)
	if !validID().MatchString(id) {
		return fmt.Errorf("%w: %q", ErrBadID, id)
	}
	rec, err := readRecord(at)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %s", ErrRootfsNotFound, id)
	}
	if err != nil {
		return err
	}
	source, err := openInRoot(r.mountPoint(at), path)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	source.Close()
	c := treeCopy{ctx: ctx, limits: r.store.opts.Limits}
	err = makeVolume(&c, r.mountPoint(at), rec, Volume{Path: path, Dir: dir})
	if sentinelOf(err) == ErrNoSpace && !errors.Is(err, ErrNoSpace) {
		err = fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

// makeVolume makes one volume.
func makeVolume(c *treeCopy, root string, rec record, v Volume) error {
	if c.ctx.Err() != nil {
		return context.Cause(c.ctx)
	}
	source, err := openInRoot(root, v.Path)
	switch {
	case errors.Is(err, unix.ENOENT):
		return emptyVolume(rec, v.Dir)
	case err != nil:
		return err
	}
	defer source.Close()
	return c.copyTree(source, v.Path, v.Dir)
}

// emptyVolume makes a directory that belongs to the root of the container.
func emptyVolume(rec record, dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o755); err != nil { // past the umask
		return err
	}
	uid, mapped := rootOf(rec.UIDMap)
	gid, _ := rootOf(rec.GIDMap)
	if !mapped {
		return nil
	}
	return os.Chown(dir, int(uid), int(gid))
}

// openInRoot opens the directory at an absolute path below root. Links are followed as
// a process sees them whose root it is.
func openInRoot(root, path string) (*os.File, error) {
	at, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", root, err)
	}
	defer unix.Close(at)
	fd, err := openat2.InRoot(at, path, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}
