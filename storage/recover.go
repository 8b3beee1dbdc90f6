package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	cstorage "go.podman.io/storage"

	"github.com/subpod/subpod/pkg/tree"
	"github.com/subpod/subpod/storage/internal/fetch"
)

// recover repairs the store when it is opened. Nothing else uses it yet.
// Each step goes on where one thing fails: what can't be repaired is logged,
// and must not keep everything else from starting.
func (im *Images) recover(ctx context.Context) error {
	l := im.store
	if err := tree.RemoveAll(l.dirs.tmp()); err != nil {
		l.log.Warn("old temporary files not removed", "error", err)
	}
	if err := tree.RemoveAll(l.dirs.staging()); err != nil {
		l.log.Warn("old staged layers not removed", "error", err)
	}
	for _, dir := range []string{l.dirs.tmp(), l.dirs.unsynced()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("%w: %w", ErrNotUsable, err)
		}
	}
	spool, err := fetch.NewSpool(l.dirs.blobs(), spoolLimit, spoolKeep)
	if err != nil {
		l.log.Warn("blobs are not kept while they are downloaded", "error", err)
	}
	im.spool = spool
	removeProbes(l)
	removeHalfWritten(l)
	if err := removeUnsynced(l); err != nil {
		l.log.Warn("images of an interrupted pull can't be removed", "error", err)
	}
	if err := removeBroken(l); err != nil {
		l.log.Warn("damaged images can't be removed", "error", err)
	}
	if err := sweepLayers(l); err != nil {
		l.log.Warn("layers of no image not removed", "error", err)
	}
	// Metadata is read now, while nothing holds up the layer store.
	_, err = im.List(ctx)
	return err
}

// removeHalfWritten removes the files that containers/storage was to rename into place when the
// previous server exited.
func removeHalfWritten(l *layerStore) {
	for _, root := range []string{l.opts.Root, l.opts.RunRoot} {
		for _, pattern := range []string{"*-layers/.tmp-*", "*-images/.tmp-*", "*-images/*/.tmp-*", "*-containers/.tmp-*"} {
			files, _ := filepath.Glob(filepath.Join(root, pattern))
			for _, f := range files {
				if err := os.Remove(f); err != nil {
					l.log.Warn("half-written file not removed", "error", err)
				}
			}
		}
	}
}

// removeProbes removes what a killed chooseDriver left.
func removeProbes(l *layerStore) {
	probes, _ := filepath.Glob(filepath.Join(l.opts.Root, ".probe*"))
	for _, p := range probes {
		if err := errors.Join(unmount(filepath.Join(p, "merged")), tree.RemoveAll(p)); err != nil {
			l.log.Warn("old probe not removed", "error", err)
		}
	}
}

// removeUnsynced removes images that were written shortly before the machine
// went down: their records are on the disk, the content of their files perhaps
// is not, and an empty library breaks a container in ways nobody understands.
// They are pulled again when they are needed.
func removeUnsynced(l *layerStore) error {
	marks, err := os.ReadDir(l.dirs.unsynced())
	if err != nil {
		return err
	}
	var since time.Time
	for _, m := range marks {
		path := filepath.Join(l.dirs.unsynced(), m.Name())
		if at, ok := unsyncedSince(path); ok && (since.IsZero() || at.Before(since)) {
			since = at
		}
	}
	if !since.IsZero() {
		if err := removeImagesSince(l, since); err != nil {
			return err
		}
	} else if len(marks) > 0 {
		// Same boot: the content is in the page cache at worst.
		if err := syncFS(l.opts.Root); err != nil {
			return err
		}
	}
	for _, m := range marks {
		if err := os.Remove(filepath.Join(l.dirs.unsynced(), m.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// unsyncedSince reads a mark: when the pull began, and whether the machine has
// gone down since. An unreadable mark was being written when that happened, and
// nothing of the image was there yet.
func unsyncedSince(path string) (time.Time, bool) {
	data, err := os.ReadFile(path)
	if err != nil {
		return time.Time{}, false
	}
	boot, at, _ := strings.Cut(strings.TrimSpace(string(data)), " ")
	nano, err := strconv.ParseInt(at, 10, 64)
	if err != nil || boot == bootID() {
		return time.Time{}, false
	}
	return time.Unix(0, nano), true
}

// removeImagesSince removes images with a layer made since then.
func removeImagesSince(l *layerStore, since time.Time) error {
	images, err := l.cs.Images()
	if err != nil {
		return err
	}
	var errs error
	for i := range images {
		if images[i].ReadOnly || !hasLayerSince(l, &images[i], since) {
			continue
		}
		l.log.Warn("image removed: the machine went down before it was all on the disk; pull it again",
			"image", images[i].ID, "names", images[i].Names)
		if err := l.deleteImage(images[i].ID); err != nil {
			errs = errors.Join(errs, err)
		}
	}
	return errs
}

func hasLayerSince(l *layerStore, img *cstorage.Image, since time.Time) bool {
	for id := img.TopLayer; id != ""; {
		layer, err := l.cs.Layer(id)
		if err != nil {
			return true
		}
		if !layer.ReadOnly && !layer.Created.Before(since) {
			return true
		}
		id = layer.Parent
	}
	return false
}

// sweepLayers removes layers that no image needs: of pulls that failed or were
// killed. Nothing may be pulling meanwhile.
func sweepLayers(l *layerStore) error {
	layers, err := l.cs.Layers()
	if err != nil {
		return err
	}
	images, err := l.cs.Images()
	if err != nil {
		return err
	}
	parent, mine := map[string]string{}, map[string]bool{}
	children := map[string]int{}
	for _, layer := range layers {
		parent[layer.ID] = layer.Parent
		if !layer.ReadOnly {
			mine[layer.ID] = true
			children[layer.Parent]++
		}
	}
	needed := map[string]bool{}
	for i := range images {
		for _, top := range append([]string{images[i].TopLayer}, images[i].MappedTopLayers...) {
			for id := top; id != "" && !needed[id]; id = parent[id] {
				needed[id] = true
			}
		}
	}
	var errs error
	for id := range mine {
		// Leaves first, then upwards as parents become leaves.
		for id != "" && mine[id] && !needed[id] && children[id] == 0 {
			if err := l.deleteLayer(id); err != nil && !errors.Is(err, cstorage.ErrLayerUnknown) {
				errs = errors.Join(errs, fmt.Errorf("remove layer %s: %w", id, err))
				break
			}
			delete(mine, id)
			l.log.Debug("layer of no image removed", "layer", id)
			id = parent[id]
			children[id]--
		}
	}
	return errors.Join(errs, sweepLayerDirs(l, parent), removeDanglingLinks(l))
}

// sweepLayerDirs removes directories of the driver that are no layer's.
func sweepLayerDirs(l *layerStore, known map[string]string) error {
	driver, err := l.cs.GraphDriver()
	if err != nil {
		return err
	}
	dirs, err := driver.ListLayers()
	if err != nil {
		return err
	}
	var errs error
	for _, id := range dirs {
		if _, ok := known[id]; !ok && fullID().MatchString(id) {
			errs = errors.Join(errs, l.vetLayer(id), confined(l, func() error { return driver.Remove(id) }))
		}
	}
	return errs
}

// removeDanglingLinks removes short names (see shortName) of layers that are not there:
// the driver forgets them when it can't make a layer. It makes a layer's directory
// before the link.
func removeDanglingLinks(l *layerStore) error {
	links := filepath.Join(l.dirs.overlay(), "l")
	entries, err := os.ReadDir(links)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var errs error
	for _, e := range entries {
		link := filepath.Join(links, e.Name())
		if _, err := os.Stat(link); errors.Is(err, fs.ErrNotExist) && e.Type() == fs.ModeSymlink {
			errs = errors.Join(errs, os.Remove(link))
		}
	}
	return errors.Join(err, errs)
}
