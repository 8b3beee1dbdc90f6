package main

import (
	"errors"
	"os"

	"github.com/spf13/cobra"

	"github.com/subpod/subpod/cmd/internal/cli"
	"github.com/subpod/subpod/rootless"
)

func newUnshare(flags *cli.Flags) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "unshare [flags] [--] [COMMAND [ARG...]]",
		Short: "Run a command as the owner of containers' files",
		Long: `Runs a command, or a shell, as root over the user's subordinate IDs: files that
containers have made, and that belong to IDs like 100999 on the host, can be
looked at, given away and deleted there. It needs no daemon; the network is the
host's.`,
		Example: "  subpod unshare rm -rf ./build-output\n  subpod unshare ls -ln ~/.local/share/subpod/volumes",
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := flags.Load()
			if err != nil {
				return err
			}
			if len(args) == 0 {
				args = []string{shell()}
			}
			opts := rootless.EnterOptions{HostNetwork: true, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
			code, err := rootless.Enter(cmd.Context(), cfg.Daemon.RunDir, args, opts)
			if errors.Is(err, rootless.ErrNoNode) {
				code, err = rootless.Unshare(cmd.Context(), args, opts)
			}
			if err != nil {
				return err
			}
			if code != 0 {
				return exitStatus(code)
			}
			return nil
		},
	}
	cmd.Flags().SetInterspersed(false)
	return cmd
}
