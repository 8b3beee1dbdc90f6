// Command subpod is a CRI container runtime for ordinary users: the daemon that
// makes the node, and the client commands.
package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/subpod/subpod/pkg/cli"
	"github.com/subpod/subpod/rootless"
)

func main() {
	rootless.Dispatch()
	err := newRoot().Execute()
	var code exitStatus
	switch {
	case err == nil:
		return
	case errors.As(err, &code):
		os.Exit(int(code))
	}
	fmt.Fprintln(os.Stderr, "subpod:", err)
	os.Exit(1)
}

// exitStatus ends the process with the code of a command that has said itself
// what was wrong.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

func newRoot() *cobra.Command {
	cmd := &cobra.Command{
		Use:           "subpod",
		Short:         "Rootless container runtime with a CRI endpoint",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	flags := cli.AddFlags(cmd)
	cmd.AddCommand(
		newDaemon(flags),
		newNsenter(flags),
		newReload(flags),
		newLoad(flags),
		newVersion(),
	)
	return cmd
}
