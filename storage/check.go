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
		faults := withoutDigests(report.Images[img.ID]) // it has those of its layers, too
		for id := img.TopLayer; id != ""; {
			reported[id] = true
			layer, err := im.store.cs.Layer(id)
			faults = append(faults, faultsOf(layer, report.Layers[id])...)
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

// faultsOf returns what is wrong with a layer. One that had a name twice is here with each
// name once: its stream is another one than the one with the digest, and no fault.
func faultsOf(layer *cstorage.Layer, found []error) []error {
	if layer != nil {
		if changed, _ := layer.Flags[flagChanged].(bool); changed {
			return withoutDigests(found)
		}
	}
	return found
}

// withoutDigests leaves out that a layer's stream is not the one with its digest.
func withoutDigests(found []error) []error {
	return slices.DeleteFunc(slices.Clone(found), func(err error) bool {
		return errors.Is(err, cstorage.ErrLayerIncorrectContentDigest) || errors.Is(err, cstorage.ErrLayerIncorrectContentSize)
	})
}
