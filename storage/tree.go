package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"go.podman.io/storage/drivers/copy"
	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/tree"
)

// mountPoint returns where the tree in dir is mounted.
func (r *Rootfs) mountPoint(dir string) string {
	if r.store.opts.MountDir == "" {
		return filepath.Join(dir, "merged")
	}
	return filepath.Join(r.store.opts.MountDir, filepath.Base(filepath.Dir(dir)), filepath.Base(dir))
}

func (r *Rootfs) create(ctx context.Context, dir string, spec RootfsSpec) (path string, err error) {
	if !validID().MatchString(spec.ID) {
		return "", fmt.Errorf("%w: %q", ErrBadID, spec.ID)
	}
	unlock, err := r.locks.lock(ctx, dir)
	if err != nil {
		return "", err
	}
	defer unlock()
	want := record{ImageID: strings.TrimPrefix(spec.ImageID, "sha256:"), ReadOnly: spec.ReadOnly, UIDMap: spec.UIDMap, GIDMap: spec.GIDMap}
	have, err := readRecord(dir)
	if err == nil && have.ImageID != want.ImageID {
		return "", fmt.Errorf("%w: %s exists with image %s", ErrBadID, spec.ID, have.ImageID)
	}
	if err == nil && r.complete(dir, have) {
		return r.mount(ctx, dir, have)
	}
	if exists(dir) {
		// Half made or half removed by a process that was killed.
		if err := r.removeTree(dir); err != nil {
			return "", err
		}
	}
	defer func() {
		if err == nil {
			return
		}
		if sentinelOf(err) == ErrNoSpace && !errors.Is(err, ErrNoSpace) {
			err = fmt.Errorf("%w: %w", ErrNoSpace, err)
		}
		err = errors.Join(err, r.removeTree(dir))
	}()
	layers, err := r.claimImage(ctx, dir, want)
	if err != nil {
		return "", err
	}
	if err := r.writeTree(dir, want, layers); err != nil {
		return "", err
	}
	return r.mount(ctx, dir, want)
}

// complete reports whether writeTree has finished.
func (r *Rootfs) complete(dir string, rec record) bool {
	last := "upper"
	if rec.ReadOnly {
		last = "empty"
	}
	return exists(filepath.Join(dir, last))
}

// claimImage makes the tree's directory with its record, and returns the image's
// layers. From then on the image counts as in use.
func (r *Rootfs) claimImage(ctx context.Context, dir string, rec record) ([]string, error) {
	if err := r.store.images.hold(ctx, rec.ImageID); err != nil {
		return nil, err
	}
	defer r.store.images.release(rec.ImageID)
	layers, err := r.store.chain(rec.ImageID)
	if err != nil {
		return nil, err
	}
	if err := os.Mkdir(dir, 0o711); err != nil {
		return nil, err
	}
	if len(rec.UIDMap) > 0 {
		// Past the umask: the inner root is neither owner nor group.
		if err := os.Chmod(dir, 0o711); err != nil {
			return nil, err
		}
	}
	return layers, writeRecord(dir, rec)
}

// writeTree makes the directories of a tree. "upper" or "empty" is the last: without it
// the tree is incomplete.
func (r *Rootfs) writeTree(dir string, rec record, layers []string) error {
	if err := os.MkdirAll(r.mountPoint(dir), 0o711); err != nil {
		return err
	}
	if rec.ReadOnly {
		return os.Mkdir(filepath.Join(dir, "empty"), 0o755)
	}
	upper := filepath.Join(dir, "upper.new")
	if r.store.driver.name == DriverVFS {
		files, err := r.store.openLayer(layers[0])
		if err != nil {
			return err
		}
		files.Close()
		if err := copy.DirCopy(r.store.diffDir(layers[0]), upper, copy.Content, true); err != nil {
			return err
		}
	} else {
		if err := os.Mkdir(filepath.Join(dir, "work"), 0o700); err != nil {
			return err
		}
		if err := r.makeUpper(upper, layers); err != nil {
			return err
		}
	}
	return os.Rename(upper, filepath.Join(dir, "upper"))
}

// makeUpper makes the writable layer's directory. The root directory of an overlay
// shows the mode and owner of its uppermost layer, so these are those of the image.
func (r *Rootfs) makeUpper(upper string, layers []string) error {
	if err := os.Mkdir(upper, 0o755); err != nil {
		return err
	}
	mode, uid, gid, err := r.store.rootOwner(layers)
	if err != nil {
		return err
	}
	if err := unix.Chmod(upper, mode); err != nil {
		return fmt.Errorf("chmod %s: %w", upper, err)
	}
	if uid == 0 && gid == 0 {
		return nil
	}
	return os.Chown(upper, int(uid), int(gid))
}

// rootOwner returns mode and owner of the root directory of an image with these layers,
// uppermost first: of the first that has an entry for it. An image without one has the
// usual; containers/storage makes it 0555 then.
func (l *layerStore) rootOwner(layers []string) (mode, uid, gid uint32, err error) {
	for _, id := range layers {
		dir, err := l.openLayer(id)
		if err != nil {
			return 0, 0, 0, err
		}
		var st unix.Stat_t
		err = unix.Fstat(int(dir.Fd()), &st)
		_, unmarked := unix.Getxattr(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()), rootXattr, nil)
		dir.Close()
		if err != nil {
			return 0, 0, 0, fmt.Errorf("stat layer %s: %w", id, err)
		}
		if unmarked == nil {
			return st.Mode & 0o7777, st.Uid, st.Gid, nil
		}
	}
	return 0o755, 0, 0, nil
}

// mount mounts the tree in dir unless it is mounted and alive.
func (r *Rootfs) mount(ctx context.Context, dir string, rec record) (string, error) {
	target := r.mountPoint(dir)
	mounted, err := isMountPoint(target)
	if err != nil {
		return "", err
	}
	if mounted {
		if alive, err := mountAlive(ctx, target); alive || err != nil {
			return target, err
		}
	}
	if err := unmount(target); err != nil {
		return "", err
	}
	if err := os.MkdirAll(target, 0o711); err != nil {
		return "", err
	}
	if len(rec.UIDMap) > 0 {
		if err := searchable(target); err != nil {
			return "", err
		}
	}
	layers, err := r.store.chain(rec.ImageID)
	if err != nil {
		return "", err
	}
	if r.store.driver.name == DriverVFS {
		return target, r.mountCopy(dir, target, layers, rec)
	}
	m := overlayMount{target: target, base: r.store.dirs.overlay(), uids: rec.UIDMap, gids: rec.GIDMap}
	for _, id := range layers {
		name, err := r.store.shortName(id)
		if err != nil {
			return "", err
		}
		m.lowers = append(m.lowers, name)
	}
	if rec.ReadOnly {
		// An overlay without a writable layer needs at least two layers.
		m.lowers = append(m.lowers, r.store.relative(filepath.Join(dir, "empty")))
	} else {
		m.upper, m.work = r.store.relative(filepath.Join(dir, "upper")), r.store.relative(filepath.Join(dir, "work"))
		if len(m.lowers) == 0 {
			m.lowers = []string{r.store.relative(filepath.Join(dir, "work"))}
		}
	}
	if r.store.driver.name == DriverNative && len(rec.UIDMap) == 0 {
		return target, m.mountNative()
	}
	if r.store.driver.fuse == "" {
		return "", fmt.Errorf("%w: a nested user namespace needs fuse-overlayfs: install it", ErrNotUsable)
	}
	return target, m.mountFuse(ctx, r.store.driver.fuse)
}

// mountCopy mounts a vfs tree: its own copy, or the layer itself read-only.
func (r *Rootfs) mountCopy(dir, target string, layers []string, rec record) error {
	if len(rec.UIDMap) > 0 {
		return fmt.Errorf("%w: the vfs driver can't map IDs for a nested user namespace", ErrNotUsable)
	}
	if !rec.ReadOnly {
		return bind(filepath.Join(dir, "upper"), target, false)
	}
	files, err := r.store.openLayer(layers[0])
	if err != nil {
		return err
	}
	defer files.Close()
	return bind(r.store.diffDir(layers[0]), target, true)
}

func (r *Rootfs) mountAgain(ctx context.Context, dir, id string) (string, error) {
	if !validID().MatchString(id) {
		return "", fmt.Errorf("%w: %q", ErrBadID, id)
	}
	unlock, err := r.locks.lock(ctx, dir)
	if err != nil {
		return "", err
	}
	defer unlock()
	rec, err := readRecord(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%w: %s", ErrRootfsNotFound, id)
	}
	if err != nil {
		return "", err
	}
	return r.mount(ctx, dir, rec)
}

func (r *Rootfs) unmountTree(ctx context.Context, dir, id string) error {
	if !validID().MatchString(id) {
		return nil
	}
	unlock, err := r.locks.lock(ctx, dir)
	if err != nil {
		return err
	}
	defer unlock()
	return unmount(r.mountPoint(dir))
}

func (r *Rootfs) deleteTree(ctx context.Context, dir, id string) error {
	if !validID().MatchString(id) {
		return nil
	}
	unlock, err := r.locks.lock(ctx, dir)
	if err != nil {
		return err
	}
	defer unlock()
	return r.removeTree(dir)
}

// removeTree unmounts and removes a tree. The record goes last, so that a tree
// whose removal was cut short is still known.
func (r *Rootfs) removeTree(dir string) error {
	target := r.mountPoint(dir)
	if err := unmount(target); err != nil {
		return err
	}
	if err := os.Remove(target); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, sub := range []string{"upper", "upper.new", "work", "empty", "volumes"} {
		if err := tree.RemoveAll(filepath.Join(dir, sub)); err != nil {
			return err
		}
	}
	return tree.RemoveAll(dir)
}
