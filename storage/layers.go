package storage

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	cstorage "github.com/containers/storage"
)

// layersOf returns the layers of an image, uppermost first. ErrImageNotFound.
func (s *Store) layersOf(id string) ([]string, error) {
	if !fullID.MatchString(id) {
		return nil, fmt.Errorf("%w: %q is no image ID", ErrImageNotFound, id)
	}
	img, err := s.cs.Image(id)
	if errors.Is(err, cstorage.ErrImageUnknown) {
		return nil, fmt.Errorf("%w: %s", ErrImageNotFound, id)
	}
	if err != nil {
		return nil, err
	}
	f, err := s.factsOf(img)
	if err != nil {
		return nil, err
	}
	return f.chain, nil
}

// overlayHome is the overlay driver's directory, one subdirectory per layer.
func (s *Store) overlayHome() string { return filepath.Join(s.opts.Root, "overlay") }

// layerDir returns the directory of a layer, in whichever store it is.
func (s *Store) layerDir(id string) string {
	for _, root := range append([]string{s.opts.Root}, s.opts.AdditionalStores...) {
		if dir := filepath.Join(root, "overlay", id); exists(dir) {
			return dir
		}
	}
	return filepath.Join(s.overlayHome(), id)
}

// diffDir returns the directory with the files of a layer: what the layer adds,
// or with vfs the whole tree.
func (s *Store) diffDir(id string) string {
	if s.driver.name == DriverVFS {
		for _, root := range append([]string{s.opts.Root}, s.opts.AdditionalStores...) {
			if dir := filepath.Join(root, "vfs", "dir", id); exists(dir) {
				return dir
			}
		}
		return filepath.Join(s.opts.Root, "vfs", "dir", id)
	}
	return filepath.Join(s.layerDir(id), "diff")
}

// shortName returns the shortest name of a layer's directory for mount options:
// the driver keeps links of 26 letters for this (l/NAME). Names are relative to
// overlayHome where they can be.
func (s *Store) shortName(id string) string {
	dir := s.layerDir(id)
	if link, err := os.ReadFile(filepath.Join(dir, "link")); err == nil {
		short := filepath.Join(filepath.Dir(dir), "l", strings.TrimSpace(string(link)))
		if target, err := os.Readlink(short); err == nil && filepath.Base(filepath.Dir(target)) == id {
			return s.relative(short)
		}
	}
	// Links are not written through to the disk: a power failure can lose them.
	return s.relative(filepath.Join(dir, "diff"))
}

// relative returns path relative to overlayHome if it is in the store.
func (s *Store) relative(path string) string {
	if rel, err := filepath.Rel(s.overlayHome(), path); err == nil && strings.HasPrefix(path, s.opts.Root+"/") {
		return rel
	}
	return path
}
