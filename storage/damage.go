package storage

import (
	"errors"
	"fmt"
)

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
			dir, err := l.openLayer(id)
			if err != nil {
				return err
			}
			dir.Close()
		}
		id = layer.Parent
	}
	return nil
}
