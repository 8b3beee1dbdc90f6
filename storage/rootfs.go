package storage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/containers/storage/drivers/copy"
	"golang.org/x/sys/unix"
)

// RootfsSpec says what root file system a container needs.
type RootfsSpec struct {
	// ID is the container's.
	ID string
	// ImageID is the image's full ID.
	ImageID string
	// ReadOnly mounts the image without a writable layer. An OCI runtime makes
	// missing mount points (/proc, /etc/hosts …) in the root file system before
	// it makes that read-only, so this is not what readonly_rootfs of CRI asks
	// for: leave it to the OCI spec's root.readonly.
	ReadOnly bool
	// UIDMap and GIDMap show the image's files as a nested user namespace needs
	// them: ID Container of the image appears as Host. fuse-overlayfs is used
	// whatever the driver, since the kernel lets no unprivileged user do this.
	UIDMap, GIDMap []IDMap
}

// Rootfs is a mounted root file system.
type Rootfs struct {
	Path string
}

// record is what is known about a root file system or image mount: the file
// record.json in its directory, written before anything is mounted.
type record struct {
	ImageID  string  `json:"image"`
	ReadOnly bool    `json:"readOnly,omitempty"`
	UIDMap   []IDMap `json:"uidMap,omitempty"`
	GIDMap   []IDMap `json:"gidMap,omitempty"`
}

const recordFile = "record.json"

var validID = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)

func (s *Store) rootfsDir(id string) string     { return filepath.Join(s.own, "rootfs", id) }
func (s *Store) imageMountDir(id string) string { return filepath.Join(s.own, "mounts", id) }

// mountPoint returns where the tree in dir is mounted.
func (s *Store) mountPoint(dir string) string {
	if s.opts.MountDir == "" {
		return filepath.Join(dir, "merged")
	}
	return filepath.Join(s.opts.MountDir, filepath.Base(filepath.Dir(dir)), filepath.Base(dir))
}

// CreateRootfs makes the root file system of a container, with a writable layer
// of its own, and mounts it. Idempotent for the same ID and image. Nothing is
// left behind on failure. ErrImageNotFound, ErrBadID, ErrNoSpace.
func (s *Store) CreateRootfs(ctx context.Context, spec RootfsSpec) (Rootfs, error) {
	path, err := s.create(ctx, s.rootfsDir(spec.ID), spec)
	return Rootfs{Path: path}, err
}

// MountRootfs mounts the root file system again after its mount has gone: the
// node was restarted, or fuse-overlayfs was killed. Idempotent. ErrRootfsNotFound.
func (s *Store) MountRootfs(ctx context.Context, id string) (Rootfs, error) {
	path, err := s.mountAgain(ctx, s.rootfsDir(id), id)
	return Rootfs{Path: path}, err
}

// UnmountRootfs unmounts the root file system and keeps its writable layer.
// Idempotent, also for unknown IDs.
func (s *Store) UnmountRootfs(ctx context.Context, id string) error {
	return s.unmountTree(s.rootfsDir(id), id)
}

// DeleteRootfs unmounts the root file system and removes its writable layer.
// Idempotent, also for unknown IDs.
func (s *Store) DeleteRootfs(ctx context.Context, id string) error {
	return s.deleteTree(s.rootfsDir(id), id)
}

// RootfsIDs returns the IDs of all root file systems, mounted or not.
func (s *Store) RootfsIDs(ctx context.Context) ([]string, error) { return listIDs(s.rootfsDir("")) }

// MountImage mounts an image read-only, for an image volume. id is the caller's
// name for the mount. Idempotent for the same ID and image. ErrImageNotFound.
func (s *Store) MountImage(ctx context.Context, imageID, id string) (string, error) {
	return s.create(ctx, s.imageMountDir(id), RootfsSpec{ID: id, ImageID: imageID, ReadOnly: true})
}

// UnmountImage takes an image mount away. Idempotent, also for unknown IDs.
func (s *Store) UnmountImage(ctx context.Context, id string) error {
	return s.deleteTree(s.imageMountDir(id), id)
}

// ImageMountIDs returns the IDs of all image mounts.
func (s *Store) ImageMountIDs(ctx context.Context) ([]string, error) {
	return listIDs(s.imageMountDir(""))
}

func (s *Store) create(ctx context.Context, dir string, spec RootfsSpec) (path string, err error) {
	if !validID.MatchString(spec.ID) {
		return "", fmt.Errorf("%w: %q", ErrBadID, spec.ID)
	}
	defer s.rootfs.lock(dir)()
	want := record{ImageID: strings.TrimPrefix(spec.ImageID, "sha256:"), ReadOnly: spec.ReadOnly, UIDMap: spec.UIDMap, GIDMap: spec.GIDMap}
	if have, err := readRecord(dir); err == nil {
		if have.ImageID != want.ImageID {
			return "", fmt.Errorf("%w: %s exists with image %s", ErrBadID, spec.ID, have.ImageID)
		}
		return s.mount(ctx, dir, have)
	} else if !errors.Is(err, fs.ErrNotExist) || exists(dir) {
		// Half made or half removed by a process that was killed.
		if err := s.removeTree(dir); err != nil {
			return "", err
		}
	}
	defer func() {
		if err == nil {
			return
		}
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
			err = fmt.Errorf("%w: %w", ErrNoSpace, err)
		}
		err = errors.Join(err, s.removeTree(dir))
	}()
	if err := s.writeTree(dir, want); err != nil {
		return "", err
	}
	return s.mount(ctx, dir, want)
}

// writeTree makes the directories of a tree and its record. From then on the
// image counts as in use.
func (s *Store) writeTree(dir string, r record) error {
	s.images.RLock()
	defer s.images.RUnlock()
	layers, err := s.layersOf(r.ImageID)
	if err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o711); err != nil {
		return err
	}
	if len(r.UIDMap) > 0 {
		// Past the umask: the inner root is neither owner nor group.
		if err := os.Chmod(dir, 0o711); err != nil {
			return err
		}
	}
	if err := writeRecord(dir, r); err != nil {
		return err
	}
	if err := os.MkdirAll(s.mountPoint(dir), 0o711); err != nil {
		return err
	}
	if r.ReadOnly {
		return os.Mkdir(filepath.Join(dir, "empty"), 0o755)
	}
	if s.driver.name == DriverVFS {
		return copy.DirCopy(s.diffDir(layers[0]), filepath.Join(dir, "upper"), copy.Content, true)
	}
	if err := os.Mkdir(filepath.Join(dir, "work"), 0o700); err != nil {
		return err
	}
	return s.makeUpper(filepath.Join(dir, "upper"), layers)
}

// makeUpper makes the writable layer's directory. The root directory of an
// overlay shows the mode and owner of its uppermost layer, so these are copied.
func (s *Store) makeUpper(upper string, layers []string) error {
	if err := os.Mkdir(upper, 0o755); err != nil {
		return err
	}
	mode, uid, gid := os.FileMode(0o755), 0, 0
	if len(layers) > 0 {
		var st unix.Stat_t
		if err := unix.Stat(s.diffDir(layers[0]), &st); err != nil {
			return fmt.Errorf("stat layer %s: %w", layers[0], err)
		}
		mode, uid, gid = os.FileMode(st.Mode&0o7777), int(st.Uid), int(st.Gid)
	}
	if err := unix.Chmod(upper, uint32(mode)); err != nil {
		return fmt.Errorf("chmod %s: %w", upper, err)
	}
	if uid == 0 && gid == 0 {
		return nil
	}
	return os.Chown(upper, uid, gid)
}

// mount mounts the tree in dir unless it is mounted and alive.
func (s *Store) mount(ctx context.Context, dir string, r record) (string, error) {
	target := s.mountPoint(dir)
	mounted, err := isMountPoint(target)
	if err != nil {
		return "", err
	}
	if mounted && mountAlive(target) {
		return target, nil
	}
	if err := unmount(target); err != nil {
		return "", err
	}
	if err := os.MkdirAll(target, 0o711); err != nil {
		return "", err
	}
	if len(r.UIDMap) > 0 {
		if err := searchable(target); err != nil {
			return "", err
		}
	}
	layers, err := s.layersOf(r.ImageID)
	if err != nil {
		return "", err
	}
	if s.driver.name == DriverVFS {
		return target, s.mountCopy(dir, target, layers, r)
	}
	m := overlayMount{target: target, base: s.overlayHome(), uids: r.UIDMap, gids: r.GIDMap}
	for _, id := range layers {
		m.lowers = append(m.lowers, s.shortName(id))
	}
	if r.ReadOnly {
		// An overlay without a writable layer needs at least two layers.
		m.lowers = append(m.lowers, s.relative(filepath.Join(dir, "empty")))
	} else {
		m.upper, m.work = s.relative(filepath.Join(dir, "upper")), s.relative(filepath.Join(dir, "work"))
		if len(m.lowers) == 0 {
			m.lowers = []string{s.relative(filepath.Join(dir, "work"))}
		}
	}
	if s.driver.name == DriverNative && len(r.UIDMap) == 0 {
		return target, m.mountNative()
	}
	if s.driver.fuse == "" {
		return "", fmt.Errorf("%w: a nested user namespace needs fuse-overlayfs: install it", ErrNotUsable)
	}
	return target, m.mountFuse(ctx, s.driver.fuse)
}

// mountCopy mounts a vfs tree: its own copy, or the layer itself read-only.
func (s *Store) mountCopy(dir, target string, layers []string, r record) error {
	if len(r.UIDMap) > 0 {
		return fmt.Errorf("%w: the vfs driver can't map IDs for a nested user namespace", ErrNotUsable)
	}
	if !r.ReadOnly {
		return bind(filepath.Join(dir, "upper"), target, false)
	}
	return bind(s.diffDir(layers[0]), target, true)
}

func (s *Store) mountAgain(ctx context.Context, dir, id string) (string, error) {
	if !validID.MatchString(id) {
		return "", fmt.Errorf("%w: %q", ErrBadID, id)
	}
	defer s.rootfs.lock(dir)()
	r, err := readRecord(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%w: %s", ErrRootfsNotFound, id)
	}
	if err != nil {
		return "", err
	}
	return s.mount(ctx, dir, r)
}

func (s *Store) unmountTree(dir, id string) error {
	if !validID.MatchString(id) {
		return nil
	}
	defer s.rootfs.lock(dir)()
	return unmount(s.mountPoint(dir))
}

func (s *Store) deleteTree(dir, id string) error {
	if !validID.MatchString(id) {
		return nil
	}
	defer s.rootfs.lock(dir)()
	return s.removeTree(dir)
}

// removeTree unmounts and removes a tree. The record goes last, so that a tree
// whose removal was cut short is still known.
func (s *Store) removeTree(dir string) error {
	target := s.mountPoint(dir)
	if err := unmount(target); err != nil {
		return err
	}
	if err := os.Remove(target); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, sub := range []string{"upper", "work", "empty"} {
		if err := os.RemoveAll(filepath.Join(dir, sub)); err != nil {
			return err
		}
	}
	return os.RemoveAll(dir)
}

// searchable reports an error unless every directory above path may be entered
// by users that are neither its owner nor in its group.
func searchable(path string) error {
	for dir := path; ; dir = filepath.Dir(dir) {
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err != nil {
			return fmt.Errorf("stat %s: %w", dir, err)
		}
		if st.Mode&0o001 == 0 {
			return fmt.Errorf("%w: the root of a nested user namespace can't enter %s (mode %04o): mount root file systems elsewhere (MountDir)",
				ErrNotUsable, dir, st.Mode&0o7777)
		}
		if dir == "/" {
			return nil
		}
	}
}

// Nestable reports whether CreateRootfs can show IDs as a nested user namespace
// needs them; the error says why not. ErrNotUsable.
func (s *Store) Nestable() error {
	if s.driver.name == DriverVFS || s.driver.fuse == "" {
		return fmt.Errorf("%w: a nested user namespace needs fuse-overlayfs", ErrNotUsable)
	}
	dir := s.opts.MountDir
	if dir == "" {
		dir = s.own
	}
	return searchable(dir)
}

// userOf names a root file system or image mount that needs the image, or "".
func (s *Store) userOf(imageID string) (string, error) {
	for _, parent := range []string{s.rootfsDir(""), s.imageMountDir("")} {
		ids, err := listIDs(parent)
		if err != nil {
			return "", err
		}
		for _, id := range ids {
			if r, err := readRecord(filepath.Join(parent, id)); err == nil && r.ImageID == imageID {
				return filepath.Base(parent) + "/" + id, nil
			}
		}
	}
	return "", nil
}

func listIDs(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	ids := make([]string, 0, len(entries))
	for _, e := range entries {
		ids = append(ids, e.Name())
	}
	slices.Sort(ids)
	return ids, nil
}

func readRecord(dir string) (record, error) {
	var r record
	data, err := os.ReadFile(filepath.Join(dir, recordFile))
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return r, fmt.Errorf("%s: %w", filepath.Join(dir, recordFile), err)
	}
	return r, nil
}

func writeRecord(dir string, r record) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, recordFile+".new")
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, recordFile))
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
