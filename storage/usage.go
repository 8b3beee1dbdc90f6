package storage

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

// Usage of disk: bytes as blocks actually taken, and inodes, as du(1) counts.
type Usage struct {
	Bytes, Inodes uint64
}

// FSInfo is where images and writable layers are and how much space they take.
type FSInfo struct {
	// Mountpoint is the store's root. A caller asks the file system there for
	// its capacity.
	Mountpoint string
	// UsedBytes and InodesUsed are those of the image layers in the store
	// (without additional stores).
	UsedBytes, InodesUsed uint64
	// Containers are the writable layers of root file systems.
	Containers Usage
}

// layerUsage remembers the usage of image layers, which never changes.
type layerUsage struct {
	mu    sync.Mutex
	known map[string]Usage
}

// FSInfo returns what images and writable layers take on the disk.
func (im *Images) FSInfo(ctx context.Context) (FSInfo, error) {
	info := FSInfo{Mountpoint: im.store.opts.Root}
	list, err := im.store.cs.Images()
	if err != nil {
		return info, err
	}
	seen := map[string]bool{}
	for i := range list {
		if list[i].ReadOnly {
			continue
		}
		f, err := im.store.metadataOf(&list[i])
		if err != nil {
			continue // List logs it
		}
		for _, id := range f.chain {
			if seen[id] {
				continue
			}
			seen[id] = true
			u, err := im.layerUsage(ctx, id)
			if err != nil {
				return info, err
			}
			info.UsedBytes += u.Bytes
			info.InodesUsed += u.Inodes
		}
	}
	ids, err := listIDs(im.store.dirs.rootfs(""))
	if err != nil {
		return info, err
	}
	for _, id := range ids {
		u, err := rootfsUsage(ctx, im.store.dirs, id)
		if err != nil && !errors.Is(err, ErrRootfsNotFound) {
			return info, err
		}
		info.Containers.Bytes += u.Bytes
		info.Containers.Inodes += u.Inodes
	}
	return info, nil
}

// Usage returns what the writable layer of a root file system and its volumes take.
// ErrRootfsNotFound.
func (r *Rootfs) Usage(ctx context.Context, id string) (Usage, error) {
	return rootfsUsage(ctx, r.store.dirs, id)
}

func rootfsUsage(ctx context.Context, dirs directories, id string) (Usage, error) {
	if !validID.MatchString(id) || !exists(dirs.rootfs(id)) {
		return Usage{}, ErrRootfsNotFound
	}
	upper, err := diskUsage(ctx, filepath.Join(dirs.rootfs(id), "upper"))
	if err != nil {
		return upper, err
	}
	volumes, err := diskUsage(ctx, filepath.Join(dirs.rootfs(id), "volumes"))
	return Usage{Bytes: upper.Bytes + volumes.Bytes, Inodes: upper.Inodes + volumes.Inodes}, err
}

func (im *Images) layerUsage(ctx context.Context, id string) (Usage, error) {
	dir := im.store.diffDir(id)
	im.usage.mu.Lock()
	u, ok := im.usage.known[id]
	im.usage.mu.Unlock()
	if ok {
		return u, nil
	}
	u, err := diskUsage(ctx, dir)
	if err != nil {
		return u, err
	}
	im.usage.mu.Lock()
	im.usage.known[id] = u
	im.usage.mu.Unlock()
	return u, nil
}

// diskUsage adds up the tree below dir, counting hard links once. What
// disappears meanwhile is left out; a missing dir is empty.
func diskUsage(ctx context.Context, dir string) (Usage, error) {
	var u Usage
	linked := map[uint64]bool{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return nil
		}
		if st.Nlink > 1 && st.Mode&syscall.S_IFMT != syscall.S_IFDIR {
			if linked[st.Ino] {
				return nil
			}
			linked[st.Ino] = true
		}
		u.Bytes += uint64(st.Blocks) * 512
		u.Inodes++
		if u.Inodes%1024 == 0 {
			return ctx.Err()
		}
		return nil
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return u, err
	}
	return u, nil
}
