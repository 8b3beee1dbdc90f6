package main

import "github.com/spf13/cobra"

func newCreate(a *app) *cobra.Command {
	o := &runOptions{create: true}
	cmd := &cobra.Command{
		Use:   "create [flags] IMAGE [COMMAND [ARG...]]",
		Short: "Create a container without starting it",
		Long: `Creates a container in a pod of its own, as "subpod run" does, and prints its ID. It is
started by "subpod start", and stays until it is removed: also across restarts of the
daemon.`,
		Example: "  subpod create --name web -p 8080:80 nginx && subpod start web",
		Args:    atLeast(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.detach = true
			return runCode(runRun(cmd.Context(), a, o, args))
		},
	}
	o.addFlags(cmd)
	// What only a running container has.
	for _, name := range []string{"detach", "ephemeral-node"} {
		must(cmd.Flags().MarkHidden(name))
	}
	return cmd
}
