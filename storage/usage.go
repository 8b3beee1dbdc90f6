package storage

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
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

// FSInfo returns what images and writable layers take on the disk. Writable layers with so
// many files that they take long to measure count with what they last took, as far as it is
// known.
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
	until := time.Now().Add(usagePatience)
	for _, id := range ids {
		patience, cancel := context.WithTimeout(ctx, max(leastPatience, time.Until(until)))
		u, err := rootfsUsage(patience, im.store, id)
		late := patience.Err() != nil && ctx.Err() == nil
		cancel()
		if err != nil && !late && !errors.Is(err, ErrRootfsNotFound) {
			return info, err
		}
		info.Containers.Bytes += u.Bytes
		info.Containers.Inodes += u.Inodes
	}
	return info, nil
}

// Usage returns what the writable layer of a root file system and its volumes take. When ctx
// ends before they are measured, that goes on, and it is what they last took, with the error of
// ctx. ErrRootfsNotFound.
func (r *Rootfs) Usage(ctx context.Context, id string) (Usage, error) {
	return rootfsUsage(ctx, r.store, id)
}

func rootfsUsage(ctx context.Context, l *layerStore, id string) (Usage, error) {
	if !validID().MatchString(id) || !exists(l.dirs.rootfs(id)) {
		return Usage{}, ErrRootfsNotFound
	}
	u, err := l.usages.of(ctx, id, func(ctx context.Context) (Usage, error) { return writtenUsage(ctx, l.dirs, id) })
	if !exists(l.dirs.rootfs(id)) { // it may have been deleted, and forgotten, before it was asked for
		l.usages.forget(id)
	}
	return u, err
}

func writtenUsage(ctx context.Context, dirs directories, id string) (Usage, error) {
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
	files, err := im.store.openLayer(id)
	if err != nil {
		return u, err
	}
	files.Close()
	if u, err = diskUsage(ctx, dir); err != nil {
		return u, err
	}
	im.usage.mu.Lock()
	im.usage.known[id] = u
	im.usage.mu.Unlock()
	return u, nil
}

// maxDepth bounds how deep diskUsage looks: each level takes a descriptor.
const maxDepth = 1000

// diskUsage adds up the tree below dir, counting hard links once. What disappears
// meanwhile is left out, and what is more than maxDepth deep; a missing dir is empty.
// Paths may be longer than the kernel takes in one call.
func diskUsage(ctx context.Context, dir string) (Usage, error) {
	w := usageWalk{ctx: ctx, linked: map[uint64]bool{}}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return w.sum, gone(&fs.PathError{Op: "lstat", Path: dir, Err: err})
	}
	w.add(&st)
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return w.sum, nil
	}
	err := w.below(unix.AT_FDCWD, dir, 0)
	return w.sum, err
}

// usageWalk is one run of diskUsage.
type usageWalk struct {
	ctx    context.Context
	sum    Usage
	linked map[uint64]bool
}

func (w *usageWalk) add(st *unix.Stat_t) {
	if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if w.linked[st.Ino] {
			return
		}
		w.linked[st.Ino] = true
	}
	w.sum.Bytes += uint64(st.Blocks) * 512
	w.sum.Inodes++
}

// below adds what is below a directory.
func (w *usageWalk) below(parent int, name string, depth int) error {
	fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return gone(&fs.PathError{Op: "open", Path: name, Err: err})
	}
	dir := os.NewFile(uintptr(fd), name)
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(1024)
		for _, name := range names {
			var st unix.Stat_t
			if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); errors.Is(err, fs.ErrNotExist) {
				continue
			} else if err != nil {
				return &fs.PathError{Op: "fstatat", Path: name, Err: err}
			}
			w.add(&st)
			if st.Mode&unix.S_IFMT == unix.S_IFDIR && depth < maxDepth {
				if err := w.below(fd, name, depth+1); err != nil {
					return err
				}
			}
		}
		if errors.Is(err, io.EOF) {
			return w.ctx.Err()
		}
		if err != nil {
			return gone(err)
		}
		if err := w.ctx.Err(); err != nil {
			return err
		}
	}
}

// gone returns nil for the error of a file that is not there any more.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	return err
}
