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
		Short: "Run a command in the user namespace of the node",
		Long: `Runs a command, by default a shell, as root over the user's subordinate IDs. Files
that containers have created, and that belong to IDs such as 100999 on the host, can
be read, chowned and removed there. It needs no daemon; the network is that of the
host.`,
		Example: "  subpod unshare rm -rf ./build-output\n  subpod unshare ls -ln ~/.local/share/subpod/volumes",
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := clientConfig(flags, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			if len(args) == 0 {
				args = []string{shell()}
			}
			opts := rootless.EnterOptions{HostNetwork: true, HostTree: true, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
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
