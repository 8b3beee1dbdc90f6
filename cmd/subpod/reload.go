package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/subpod/subpod/cmd/internal/cli"
	"github.com/subpod/subpod/rootless"
)

// reloadTimeout bounds the wait for the new server: the old one's end (20 s at most),
// and a second start where the first one fails.
const reloadTimeout = 40 * time.Second

func newReload(flags *cli.Flags) *cobra.Command {
	return &cobra.Command{
		Use:   "reload",
		Short: "Restart the server; containers keep running",
		Long: `Restarts the server with the installed binary and the current configuration.
Containers keep running. Settings of the node itself ([node]) and its directories
take effect when the daemon is restarted.

A configuration that is invalid is refused before the server is stopped. With one
that is valid but cannot be used, the server goes on with the one that served last:
the command reports why, and its exit code is 1. A binary older than the state on
disk is refused before the server is stopped.`,
		Args: none(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := flags.Load()
			if err != nil {
				return err
			}
			if err := checkState(cfg); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), reloadTimeout)
			defer cancel()
			if err := rootless.Reload(ctx, cfg.Daemon.RunDir); err != nil {
				return err
			}
			served, err := cfg.Encode()
			if err != nil {
				return err
			}
			return rootless.KeepServed(cfg.Daemon.RunDir, served)
		},
	}
}
