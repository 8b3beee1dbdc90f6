package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/subpod/subpod/cmd/internal/cli"
	"github.com/subpod/subpod/pkg/config"
)

// shown lists the configuration of the user's, and what it names, that the server
// reads: a node with a minimal view shows it read-only. Directories that are to be
// seen when they come later are made.
func shown(cfg *config.Config, flags *cli.Flags) []string {
	base := os.Getenv("XDG_CONFIG_HOME")
	home := os.Getenv("HOME")
	if !filepath.IsAbs(base) && home != "" {
		base = filepath.Join(home, ".config")
	}
	var paths []string
	if base != "" {
		for _, name := range []string{"subpod", "containers"} {
			dir := filepath.Join(base, name)
			_ = os.MkdirAll(dir, 0o755) // at worst it is not shown
			paths = append(paths, dir)
		}
	}
	if home != "" {
		paths = append(paths, filepath.Join(home, ".config/containers"), filepath.Join(home, ".docker/config.json"))
	}
	i := cfg.Images
	if file := flags.File(); file != "" {
		if abs, err := filepath.Abs(file); err == nil {
			// Its directory: an editor replaces the file.
			if abs = filepath.Dir(abs); abs == filepath.Clean(home) || abs == "/" {
				abs = filepath.Join(abs, filepath.Base(file))
			}
			paths = append(paths, abs)
		}
	}
	paths = append(paths, i.RegistriesConf, i.Policy, i.AuthFile, i.CertsDir, cfg.Runtime.SeccompProfile)
	for _, dir := range slices.Concat(cfg.Network.CNIConfDirs, cfg.Runtime.CDISpecDirs) {
		if home != "" && strings.HasPrefix(dir, home+"/") {
			_ = os.MkdirAll(dir, 0o755)
		}
	}
	paths = slices.Concat(paths, cfg.Storage.AdditionalImageStores, cfg.Network.CNIConfDirs, cfg.Network.CNIBinDirs, cfg.Runtime.CDISpecDirs)
	return slices.DeleteFunc(paths, func(path string) bool { return !filepath.IsAbs(path) })
}

// writable lists the directories beside its own that the server writes to: of the
// auth.json to which "subpod login" falls back where the configuration is read-only.
func writable() []string {
	dir := os.Getenv("XDG_RUNTIME_DIR")
	if !filepath.IsAbs(dir) {
		return nil
	}
	dir = filepath.Join(dir, "containers")
	_ = os.MkdirAll(dir, 0o700) // at worst no credentials can be stored
	return []string{dir}
}

// programs lists the programs that the server runs.
func programs(cfg *config.Config) []string {
	names := []string{cfg.Runtime.ConmonPath, cfg.Storage.MountProgram}
	for _, h := range cfg.Runtime.Handlers {
		names = append(names, h.Path)
	}
	return names
}
