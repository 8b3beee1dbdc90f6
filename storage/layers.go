package storage

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	cstorage "go.podman.io/storage"
)

// layerStore is what Images and Rootfs stand on: the images and layers of
// containers/storage, and what is remembered about them.
type layerStore struct {
	opts     Options
	log      *slog.Logger
	dirs     directories
	pinned   map[string]bool
	metadata imageMetadata

	images  holds // by Rootfs.Create until its record is written
	reserve reserve
	vetted  vetted
	usages  *usages

	// Set by open.
	driver   choice
	cs       cstorage.Store
	resident resident // fuse-overlayfs's
}

func newLayerStore(o Options) *layerStore {
	dirs := directories{root: o.Root, own: filepath.Join(o.Root, "subpod")}
	return &layerStore{opts: o, log: o.Log, pinned: pinnedNames(o.Pinned, o.Log), dirs: dirs,
		reserve: reserve{filepath.Join(dirs.own, "reserve")}, usages: newUsages()}
}

// open chooses the driver and opens containers/storage.
func (l *layerStore) open(ctx context.Context) (err error) {
	if l.driver, err = chooseDriver(ctx, l.opts); err != nil {
		return err
	}
	if err := l.vet(); err != nil {
		return err
	}
	if l.cs, err = cstorage.GetStore(l.storeOptions()); err != nil {
		return fmt.Errorf("%w: open %s: %w", ErrNotUsable, l.opts.Root, err)
	}
	return nil
}

// deleteImage deletes an image and the layers that no other needs, also on a full disk.
func (l *layerStore) deleteImage(id string) error {
	defer l.metadata.forget(id)
	if img, err := l.cs.Image(id); err == nil {
		for _, top := range append([]string{img.TopLayer}, img.MappedTopLayers...) {
			if err := l.vetLayers(top); err != nil {
				return err
			}
		}
	}
	return l.reserve.use(func() error {
		return confined(l, func() error {
			_, err := l.cs.DeleteImage(id, true)
			return err
		})
	})
}

// deleteLayer deletes a layer, also on a full disk.
func (l *layerStore) deleteLayer(id string) error {
	if err := l.vetLayers(id); err != nil {
		return err
	}
	return l.reserve.use(func() error {
		return confined(l, func() error { return l.cs.DeleteLayer(id) })
	})
}

// directories are the paths of the store.
type directories struct {
	root string
	own  string // for what containers/storage knows nothing of
}

// overlay is the overlay driver's directory, with one subdirectory a layer.
func (d directories) overlay() string { return filepath.Join(d.root, "overlay") }

// staging is where layers that are pulled in part wait to be complete.
func (d directories) staging() string { return filepath.Join(d.overlay(), "staging") }

// rootfs is the directory of a root file system; of all for "".
func (d directories) rootfs(id string) string { return filepath.Join(d.own, "rootfs", id) }

// imageMount is the directory of an image mount; of all for "".
func (d directories) imageMount(key string) string { return filepath.Join(d.own, "mounts", key) }

// tmp is where blobs wait to be unpacked: on the store's own disk.
func (d directories) tmp() string { return filepath.Join(d.own, "tmp") }

// blobs is where blobs are kept while they are downloaded, and after a pull that failed.
func (d directories) blobs() string { return filepath.Join(d.own, "blobs") }

// unsynced has a mark for each image whose content may not be on the disk yet.
func (d directories) unsynced() string { return filepath.Join(d.own, "unsynced") }

// cache is what containers/image remembers.
func (d directories) cache() string { return filepath.Join(d.own, "cache") }

// chain returns the layers of an image, uppermost first. ErrImageNotFound.
func (l *layerStore) chain(id string) ([]string, error) {
	if !fullID().MatchString(id) {
		return nil, fmt.Errorf("%w: %q is no image ID", ErrImageNotFound, id)
	}
	img, err := l.cs.Image(id)
	if errors.Is(err, cstorage.ErrImageUnknown) {
		return nil, fmt.Errorf("%w: %s", ErrImageNotFound, id)
	}
	if err != nil {
		return nil, err
	}
	f, err := l.metadataOf(img)
	if err != nil {
		return nil, err
	}
	return f.chain, nil
}

// layerDir returns the directory of a layer, in whichever store it is.
func (l *layerStore) layerDir(id string) string {
	for _, root := range append([]string{l.opts.Root}, l.opts.AdditionalStores...) {
		if dir := filepath.Join(root, "overlay", id); exists(dir) {
			return dir
		}
	}
	return filepath.Join(l.dirs.overlay(), id)
}

// diffDir returns the directory with the files of a layer: what the layer adds,
// or with vfs the whole tree.
func (l *layerStore) diffDir(id string) string {
	if l.driver.name == DriverVFS {
		for _, root := range append([]string{l.opts.Root}, l.opts.AdditionalStores...) {
			if dir := filepath.Join(root, "vfs", "dir", id); exists(dir) {
				return dir
			}
		}
		return filepath.Join(l.opts.Root, "vfs", "dir", id)
	}
	return filepath.Join(l.layerDir(id), "diff")
}

// imageDir is where containers/storage has the manifest and configuration of an image.
func (l *layerStore) imageDir(id string) string {
	return filepath.Join(l.opts.Root, l.cs.GraphDriverName()+"-images", id)
}

// shortName returns the shortest name of a layer's directory for mount options:
// the driver keeps links of 26 letters for this (l/NAME). Names are relative to
// the driver's directory where they can be. ErrCorrupt.
func (l *layerStore) shortName(id string) (string, error) {
	files, err := l.openLayer(id)
	if err != nil {
		return "", err
	}
	files.Close()
	dir := l.layerDir(id)
	if link := linkOf(dir); link != "" {
		short := filepath.Join(filepath.Dir(dir), "l", link)
		if target, err := os.Readlink(short); err == nil && target == filepath.Join("..", id, "diff") {
			return l.relative(short), nil
		}
	}
	// Links are not written through to the disk: a power failure can lose them.
	return l.relative(filepath.Join(dir, "diff")), nil
}

// relative returns path relative to the driver's directory if it is in the store.
func (l *layerStore) relative(path string) string {
	if rel, err := filepath.Rel(l.dirs.overlay(), path); err == nil && strings.HasPrefix(path, l.opts.Root+"/") {
		return rel
	}
	return path
}
