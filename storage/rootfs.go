package storage

import (
	"context"
	"fmt"
	"path/filepath"
	"regexp"
	"sync"

	"golang.org/x/sys/unix"
)

// RootfsSpec describes the root file system of a container.
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

// Mounted is a mounted root file system.
type Mounted struct {
	ID   string
	Path string
}

// Rootfs manages the root file systems of containers, and image mounts.
type Rootfs struct {
	store *layerStore
	locks keyedMutex // by directory
}

var validID = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)
})

// Create makes the root file system of a container, with a writable layer of its own,
// and mounts it. Idempotent for the same ID and image. Nothing is left behind on
// failure. ErrImageNotFound, ErrBadID, ErrNoSpace.
func (r *Rootfs) Create(ctx context.Context, spec RootfsSpec) (Mounted, error) {
	path, err := r.create(ctx, r.store.dirs.rootfs(spec.ID), spec)
	return Mounted{ID: spec.ID, Path: path}, err
}

// Mount mounts the root file system again after its mount has gone: the node was
// restarted, or fuse-overlayfs was killed. Idempotent. ErrRootfsNotFound.
func (r *Rootfs) Mount(ctx context.Context, id string) (Mounted, error) {
	path, err := r.mountAgain(ctx, r.store.dirs.rootfs(id), id)
	return Mounted{ID: id, Path: path}, err
}

// Unmount unmounts the root file system and keeps its writable layer. Idempotent,
// also for unknown IDs.
func (r *Rootfs) Unmount(ctx context.Context, id string) error {
	return r.unmountTree(ctx, r.store.dirs.rootfs(id), id)
}

// Delete unmounts the root file system and removes its writable layer. Idempotent,
// also for unknown IDs.
func (r *Rootfs) Delete(ctx context.Context, id string) error {
	defer r.store.usages.forget(id)
	return r.deleteTree(ctx, r.store.dirs.rootfs(id), id)
}

// IDs returns the IDs of all root file systems, mounted or not.
func (r *Rootfs) IDs(_ context.Context) ([]string, error) {
	return listIDs(r.store.dirs.rootfs(""))
}

// MountImage mounts an image read-only, for an image volume, and returns the path.
// The ID is the caller's name for the mount; the image's files are shown through the ID
// maps, where there are any. Idempotent for the same ID and image. ErrImageNotFound.
func (r *Rootfs) MountImage(ctx context.Context, spec RootfsSpec) (string, error) {
	spec.ReadOnly = true
	return r.create(ctx, r.store.dirs.imageMount(spec.ID), spec)
}

// UnmountImage removes an image mount. Idempotent, also for unknown keys.
func (r *Rootfs) UnmountImage(ctx context.Context, key string) error {
	return r.deleteTree(ctx, r.store.dirs.imageMount(key), key)
}

// ImageMountIDs returns the keys of all image mounts.
func (r *Rootfs) ImageMountIDs(_ context.Context) ([]string, error) {
	return listIDs(r.store.dirs.imageMount(""))
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

// Nestable returns nil when Create can show IDs as a nested user namespace
// needs them; the error is the reason. ErrNotUsable.
func (r *Rootfs) Nestable() error {
	if r.store.driver.name == DriverVFS || r.store.driver.fuse == "" {
		return fmt.Errorf("%w: a nested user namespace needs fuse-overlayfs", ErrNotUsable)
	}
	dir := r.store.opts.MountDir
	if dir == "" {
		dir = r.store.dirs.own
	}
	return searchable(dir)
}
