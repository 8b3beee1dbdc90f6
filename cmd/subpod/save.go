package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/api"
)

func newSave(a *app) *cobra.Command {
	req := &api.SaveRequest{}
	var file string
	var quiet, several bool
	cmd := &cobra.Command{
		Use:     "save [flags] IMAGE...",
		Short:   "Write images to an archive",
		Long:    `Writes images to an archive that "subpod load", Podman and Docker can load.`,
		Example: "  subpod save -o app.tar app:v1\n  subpod save busybox | ssh host subpod load",
		Args:    atLeast(1),
		RunE: a.run(func(cmd *cobra.Command, conn *connection, args []string) (err error) {
			req.Names = args
			if req.Format != "docker-archive" && req.Format != "oci-archive" {
				return usagef("invalid --format %q: expected docker-archive or oci-archive", req.Format)
			}
			var out io.Writer = os.Stdout
			if file == "" && isTerminal(os.Stdout) {
				return usagef("refusing to write an archive to a terminal: use -o FILE or redirect the output")
			}
			if file != "" {
				f, createErr := os.CreateTemp(dirOf(file), ".save-*")
				if createErr != nil {
					return fmt.Errorf("write the archive: %w", createErr)
				}
				out = f
				defer func() { err = finishFile(f, file, err) }()
			}
			return conn.Save(cmd.Context(), req, func(b []byte) error {
				_, err := out.Write(b)
				return err
			})
		}),
		ValidArgsFunction: a.completeImages,
	}
	cmd.Flags().StringVarP(&file, "output", "o", "", "file to write (default: standard output)")
	cmd.Flags().StringVar(&req.Format, "format", "docker-archive", "docker-archive, or oci-archive for one image")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "no effect: no progress is shown")
	cmd.Flags().BoolVarP(&several, "multi-image-archive", "m", false, "no effect: an archive may always have several images")
	return cmd
}

// finishFile renames a completely written file to its final name, with the mode that the
// umask leaves, or removes it.
func finishFile(f *os.File, name string, err error) error {
	mask := unix.Umask(0o077)
	unix.Umask(mask)
	err = errors.Join(err, f.Chmod(0o666&^fs.FileMode(mask)), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}
