package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/subpod/subpod/cmd/internal/cli"
	"github.com/subpod/subpod/rootless"
)

func newNsenter(flags *cli.Flags) *cobra.Command {
	var opts rootless.EnterOptions
	cmd := &cobra.Command{
		Use:   "nsenter [flags] -- COMMAND [ARG...]",
		Short: "Run a command inside the node",
		Long: `Runs a command as root of the node: in its user, mount, PID, IPC, UTS and network
namespaces. A kubelet must be run this way. The default command is a shell.`,
		Example: "  subpod nsenter -- ip address\n  subpod nsenter -- kubelet --config=kubelet.yaml",
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := clientConfig(flags, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			if len(args) == 0 {
				args = []string{shell()}
			}
			opts.Stdin, opts.Stdout, opts.Stderr = os.Stdin, os.Stdout, os.Stderr
			code, err := rootless.Enter(cmd.Context(), cfg.Daemon.RunDir, args, opts)
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
	cmd.Flags().BoolVar(&opts.HostNetwork, "host-network", false, "stay in the host's network namespace, as the server does")
	cmd.Flags().StringVar(&opts.Dir, "workdir", "", "working directory in the node (default: the current directory)")
	return cmd
}

func shell() string {
	if s := os.Getenv("SHELL"); s != "" {
		return s
	}
	return "/bin/sh"
}
