package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/subpod/subpod/configs"
)

// newAssets writes what an installation has beside the programs.
func newAssets() *cobra.Command {
	var prefix string
	cmd := &cobra.Command{
		Use:   "assets DIRECTORY",
		Short: "Write manual pages, completions, units and profiles for an installation",
		Long: `Writes what an installation has beside the programs: manual pages (share/man),
completions of bash, zsh and fish, systemd user units, the AppArmor profile, and examples.
"make install" and the packages call it.`,
		Hidden: true,
		Args:   exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return writeAssets(cmd.Root(), args[0], prefix)
		},
	}
	cmd.Flags().StringVar(&prefix, "prefix", "/usr/local", "where the programs will be: PREFIX/bin/subpod")
	return cmd
}

// writeAssets writes all files below dir, for the programs in prefix/bin.
func writeAssets(root *cobra.Command, dir, prefix string) error {
	binary := filepath.Join(prefix, "bin", root.Name())
	service, err := configs.Unit(binary, nil, nil)
	if err != nil {
		return err
	}
	profile, err := configs.AppArmorProfile(binary)
	if err != nil {
		return err
	}
	completions, err := completionFiles(root)
	if err != nil {
		return err
	}
	files := map[string]string{
		"share/man/man5/subpod.toml.5":                configPage(),
		"lib/systemd/user/subpod.service":             service,
		"lib/systemd/user/subpod.socket":              configs.SocketUnit(),
		"share/subpod/apparmor.profile":               profile,
		"share/doc/subpod/examples/subpod.toml":       configs.Default,
		"share/doc/subpod/examples/delegate.conf":     configs.Delegate,
		"share/doc/subpod/examples/sysctl.conf":       configs.Sysctl,
		"share/doc/subpod/examples/lima.yaml":         configs.Lima,
		"share/bash-completion/completions/subpod":    completions["bash"],
		"share/zsh/site-functions/_subpod":            completions["zsh"],
		"share/fish/vendor_completions.d/subpod.fish": completions["fish"],
	}
	for _, p := range helperPrograms {
		files[filepath.Join("share/man/man1", p.name+".1")] = programPage(p.name, p.what, p.text)
	}
	var errs []error
	for name, text := range files {
		errs = append(errs, writeAsset(filepath.Join(dir, name), text))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return writePages(root, filepath.Join(dir, "share/man/man1"))
}

func writeAsset(name, text string) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return fmt.Errorf("make a directory: %w", err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(name), err)
	}
	return nil
}
