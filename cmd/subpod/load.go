package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/client"
)

func newLoad(a *app) *cobra.Command {
	var input string
	var quiet bool
	cmd := &cobra.Command{
		Use:   "load [-i SOURCE | SOURCE...]",
		Short: "Load images from files or standard input",
		Long: `Loads images into the image store. A source is the path of an OCI layout, an OCI
archive or a Docker archive, or one of
  oci:DIRECTORY[:REFERENCE]  oci-archive:FILE[:REFERENCE]  docker-archive:FILE[:REFERENCE]
Without a source, or with "-", the archive is read from standard input; a file may also be
a pipe.`,
		Example: "  subpod load busybox.tar\n  subpod load oci:./layout:example.com/app:v1\n  subpod load < app.tar.gz\n  ssh host subpod save app | subpod load",
		RunE: func(cmd *cobra.Command, sources []string) error {
			if input != "" {
				sources = append(sources, input)
			}
			if len(sources) == 0 {
				if isTerminal(os.Stdin) {
					return usagef("no archive: name a file, or redirect the input")
				}
				sources = []string{"-"}
			}
			conn, err := a.connectOrStart()
			if err != nil {
				return err
			}
			defer conn.Close()
			for _, source := range sources {
				images, err := load(cmd.Context(), conn.Client, source)
				if err != nil {
					return fmt.Errorf("load %s: %w", source, err)
				}
				for _, image := range images {
					name := image.ID
					if len(image.Tags) > 0 {
						name = strings.Join(image.Tags, " ")
					}
					fmt.Fprintln(cmd.OutOrStdout(), plain(name))
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&input, "input", "i", "", "source to load, as an argument is")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "no effect: no progress is shown")
	return cmd
}

// load loads from one source. What only this process can read, as its standard input or
// a pipe, is sent to the daemon.
func load(ctx context.Context, c *client.Client, source string) ([]api.LoadedImage, error) {
	kind, path := "", source
	for _, k := range []string{"oci-archive", "docker-archive"} {
		if rest, ok := strings.CutPrefix(source, k+":"); ok {
			kind, path = k, rest
		}
	}
	ref := ""
	if kind != "" {
		path, ref, _ = strings.Cut(path, ":")
	}
	if path == "-" {
		return c.LoadStream(ctx, kind, ref, os.Stdin)
	}
	if own(path) {
		if st, err := os.Stat(path); err == nil && st.Mode()&fs.ModeDevice != 0 {
			return nil, errors.New("it is a device, not an archive")
		}
		f, err := openOwn(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return c.LoadStream(ctx, kind, ref, f)
	}
	source, err := absoluteSource(source)
	if err != nil {
		return nil, err
	}
	return c.Load(ctx, source)
}

// own reports whether a path is another file for another process, or one that can be
// read once.
func own(path string) bool {
	for _, dir := range []string{"/dev/", "/proc/"} {
		if strings.HasPrefix(filepath.Clean(path), dir) {
			return true
		}
	}
	st, err := os.Stat(path)
	return err == nil && !st.Mode().IsRegular() && !st.IsDir()
}

// openOwn opens a file for which own holds. Standard input is taken as it is: the kernel
// opens it anew neither when it is a socket nor when another user has made it.
func openOwn(path string) (*os.File, error) {
	switch filepath.Clean(path) {
	case "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0":
		return os.Stdin, nil
	}
	return os.Open(path)
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
