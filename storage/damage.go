package storage

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// indexes are containers/storage's lists of what is in the store. One that cannot be
// read would keep it from opening.
var indexes = []string{"overlay-layers/layers.json", "overlay-images/images.json", "vfs-layers/layers.json", "vfs-images/images.json"}

// setAsideIndexes moves lists away that are damaged (a disk that lost what it had
// confirmed). The images in them are pulled again when they are needed; what is
// left of them on the disk is removed as of no image.
func setAsideIndexes(l *layerStore) error {
	for _, name := range indexes {
		path := filepath.Join(l.opts.Root, name)
		data, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) || err == nil && (len(data) == 0 || json.Valid(data)) {
			continue
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrNotUsable, err)
		}
		aside := path + ".damaged-" + time.Now().UTC().Format("20060102T150405.000")
		if err := os.Rename(path, aside); err != nil {
			return fmt.Errorf("%w: %w", ErrNotUsable, err)
		}
		l.log.Error("the store's list was damaged: images in it must be pulled again", "file", path, "kept_as", aside)
	}
	return nil
}

// removeBroken removes images that lack a layer or whose manifest or configuration
// cannot be read. They are pulled again when they are needed.
func removeBroken(l *layerStore) error {
	images, err := l.cs.Images()
	if err != nil {
		return err
	}
	var errs error
	for i := range images {
		img := &images[i]
		if img.ReadOnly {
			continue
		}
		why := missingLayer(l, img.TopLayer)
		if why == nil {
			_, why = l.describe(img)
		}
		if why == nil {
			continue
		}
		l.log.Warn("image removed: a part of it is lost; pull it again", "image", img.ID, "names", img.Names, "error", why)
		if err := l.deleteImage(img.ID); err != nil {
			errs = errors.Join(errs, err)
		}
	}
	return errs
}

// missingLayer returns an error when a layer below and with top is not there.
func missingLayer(l *layerStore, top string) error {
	for id := top; id != ""; {
		layer, err := l.cs.Layer(id)
		if err != nil {
			return fmt.Errorf("layer %s: %w", id, err)
		}
		if !layer.ReadOnly {
			if _, err := os.Stat(l.diffDir(id)); err != nil {
				return err
			}
		}
		id = layer.Parent
	}
	return nil
}
