package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/subpod/subpod/pkg/cli"
)

// version is set by the build: -ldflags "-X main.version=…".
var version string

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of this program",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "subpod %s %s %s/%s\n",
				cli.Version(version), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}
