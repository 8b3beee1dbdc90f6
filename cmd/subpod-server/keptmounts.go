package main

import (
	"errors"
	"log/slog"
	"path/filepath"

	"github.com/subpod/subpod/pkg/config"
	"github.com/subpod/subpod/pkg/oci"
)

// podsDir has a directory for each pod sandbox, with its mounts.
func podsDir(cfg *config.Config) string { return filepath.Join(cfg.Daemon.RunDir, "pods") }

// keepMounts keeps the mounts of pods and containers out of the mount namespaces of others,
// and returns the directories that have them. mountDir is storage.Options.MountDir.
func keepMounts(cfg *config.Config, mountDir string) (kept []string) {
	dirs := []string{podsDir(cfg)}
	if mountDir != "" {
		dirs = append(dirs, filepath.Join(mountDir, "rootfs"), filepath.Join(mountDir, "mounts"))
	}
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
