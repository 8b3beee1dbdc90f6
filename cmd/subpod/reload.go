package main

import (
	"github.com/spf13/cobra"

	"github.com/subpod/subpod/cmd/internal/cli"
	"github.com/subpod/subpod/rootless"
)

func newReload(flags *cli.Flags) *cobra.Command {
	return &cobra.Command{
		Use:   "reload",
		Short: "Restart the server; containers keep running",
		Long: `Restarts the server with the installed binary and the current configuration.
Containers keep running. Settings of the node itself ([node]) take effect when the
daemon is restarted.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			cfg, err := flags.Load()
			if err != nil {
				return err
			}
			return rootless.Reload(cfg.Daemon.RunDir)
		},
	}
}
