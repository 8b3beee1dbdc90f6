package storage

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	cstorage "go.podman.io/storage"
)

// Problem is a damaged image, or something in the store that belongs to none.
type Problem struct {
	Image  string   // ID, "" for what is no image
	Names  []string // of the image: pull these again
	Detail string
	// Removed is set when the image was removed, so that it can be pulled again.
	Removed bool
}

// Check reads all images and layers, their checksums included, and returns what is
// damaged. It takes as long as reading the whole store. With repair, damaged images
// that nothing uses are removed, so that they can be pulled again.
func (im *Images) Check(ctx context.Context, repair bool) ([]Problem, error) {
	report, err := im.store.cs.Check(&cstorage.CheckOptions{LayerDigests: true, LayerData: true, ImageData: true})
	if err != nil {
		return nil, fmt.Errorf("check the store: %w", err)
	}
	images, err := im.store.cs.Images()
	if err != nil {
		return nil, fmt.Errorf("check the store: %w", err)
	}
	var problems []Problem
	reported := map[string]bool{}
	for i := range images {
		img := &images[i]
		if img.ReadOnly {
			continue
		}
		faults := report.Images[img.ID]
		for id := img.TopLayer; id != ""; {
			faults = append(faults, report.Layers[id]...)
			reported[id] = true
			layer, err := im.store.cs.Layer(id)
			if err != nil {
				faults = append(faults, fmt.Errorf("layer %s: %w", id, err))
				break
			}
			id = layer.Parent
		}
		if _, err := im.store.describe(img); err != nil {
			faults = append(faults, err)
		}
		if len(faults) == 0 {
			continue
		}
		p := Problem{Image: img.ID, Names: img.Names, Detail: errors.Join(faults...).Error()}
		if repair {
			if err := im.Remove(ctx, img.ID); err != nil {
				p.Detail += "; not removed: " + err.Error()
			} else {
				p.Removed = true
			}
		}
		problems = append(problems, p)
	}
	for _, id := range slices.Sorted(maps.Keys(report.Layers)) {
		if !reported[id] {
			problems = append(problems, Problem{Detail: fmt.Sprintf("layer %s, of no image: %v", id, errors.Join(report.Layers[id]...))})
		}
	}
	return problems, nil
}
