package control

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/subpath"
	"github.com/subpod/subpod/storage"
)

// localSource returns the source of a load with a path that the node has: what it does
// not show of the host is attached until release is called.
func (s *service) localSource(source string) (local string, release func(), err error) {
	transport, path, ref := api.SplitSource(source)
	none := func() {}
	if s.HostTree == nil || !filepath.IsAbs(path) {
		return source, none, nil
	}
	tree, err := s.HostTree.Open(filepath.Clean(path))
	if tree == nil {
		if _, statErr := os.Stat(path); err != nil && statErr == nil {
			err = nil // the node has it itself
		}
		if err != nil {
			err = fmt.Errorf("%w: %w", storage.ErrImageNotFound, err)
		}
		return source, none, err
	}
	defer tree.Close()
	if err := os.MkdirAll(s.TempDir, 0o700); err != nil {
		return "", none, err
	}
	dir, err := os.MkdirTemp(s.TempDir, "load-")
	if err != nil {
		return "", none, err
	}
	release = func() {
		if err := subpath.Release(dir); err != nil {
			slog.Warn("the mount of a file that was loaded could not be removed; it goes with the node", "error", err)
		}
	}
	if local, err = subpath.Attach(dir, "source", tree); err != nil {
		release()
		return "", none, err
	}
	parts := []string{transport, local, ref}
	if ref == "" {
		parts = parts[:2]
	}
	if transport == "" {
		parts = parts[1:]
	}
	return strings.Join(parts, ":"), release, nil
}
