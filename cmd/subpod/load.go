package main

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/subpod/subpod/cmd/internal/cli"
	"github.com/subpod/subpod/pkg/client"
)

func newLoad(flags *cli.Flags) *cobra.Command {
	return &cobra.Command{
		Use:   "load SOURCE...",
		Short: "Load images from files",
		Long: `Loads images into the image store. A source is the path of an OCI layout, an OCI
archive or a Docker archive, or one of
  oci:DIRECTORY[:REFERENCE]  oci-archive:FILE[:REFERENCE]  docker-archive:FILE[:REFERENCE]`,
		Example: "  subpod load busybox.tar\n  subpod load oci:./layout:example.com/app:v1",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, sources []string) error {
			cfg, err := clientConfig(flags, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			c, err := client.Dial(cfg.Daemon.Socket)
			if err != nil {
				return err
			}
			defer c.Close()
			c.Grant = granter(cfg)
			for _, source := range sources {
				source, err := absoluteSource(source)
				if err != nil {
					return err
				}
				images, err := c.Load(cmd.Context(), source)
				if err != nil {
					return fmt.Errorf("load %s: %w", source, err)
				}
				for _, image := range images {
					name := image.ID
					if len(image.Tags) > 0 {
						name = strings.Join(image.Tags, " ")
					}
					fmt.Fprintln(cmd.OutOrStdout(), name)
				}
			}
			return nil
		},
	}
}

// absoluteSource makes the path in a source absolute, since the daemon has another
// working directory.
func absoluteSource(source string) (string, error) {
	for _, transport := range []string{"oci:", "oci-archive:", "docker-archive:"} {
		if rest, ok := strings.CutPrefix(source, transport); ok {
			path, err := filepath.Abs(rest)
			return transport + path, err
		}
	}
	return filepath.Abs(source)
}
