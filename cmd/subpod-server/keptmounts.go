package main

import (
	"errors"
	"log/slog"
	"path/filepath"

	"github.com/subpod/subpod/pkg/config"
	"github.com/subpod/subpod/pkg/oci"
	"github.com/subpod/subpod/storage"
)

// podsDir has a directory for each pod sandbox, with its mounts.
func podsDir(cfg *config.Config) string { return filepath.Join(cfg.Daemon.RunDir, "pods") }

// keepMounts makes the directories that have the mounts of pods and containers those that a
// container's mount namespace need not copy (oci.KeepMounts), and returns those that are.
func keepMounts(cfg *config.Config, images storage.Options) (kept []string) {
	dirs := append([]string{podsDir(cfg)}, images.MountDirs()...)
	for _, dir := range dirs {
		switch err := oci.KeepMounts(dir); {
		case err == nil:
			kept = append(kept, dir)
		case errors.Is(err, oci.ErrMounted):
			slog.Info("a container takes longer to create the more pods there are, until the node is started again", "reason", err)
		default:
			slog.Warn("a container takes longer to create the more pods there are", "reason", err)
		}
	}
	return kept
}
