package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/subpod/subpod/pkg/client"
	"github.com/subpod/subpod/pkg/tree"
)

func newCp(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "cp SOURCE TARGET",
		Short: "Copy files between a container and the host",
		Long: `Copies a file or directory. Either the source or the target is CONTAINER:PATH;
"-" stands for a tar stream on standard input or output. If the target is an
existing directory, the source is copied into it under its own name; of a source
that ends in "/." only the contents. The container
does not need to be running and needs no tar. Files that are copied into a
container belong to its root user.`,
		Example: `  subpod cp web:/etc/nginx/nginx.conf .
  subpod cp ./site web:/usr/share/nginx/html
  subpod cp web:/var/log - | tar t`,
		Args: exactly(2),
		RunE: a.run(func(cmd *cobra.Command, conn *connection, args []string) error {
			from, fromPath := splitCopy(args[0])
			to, toPath := splitCopy(args[1])
			switch {
			case from != "" && to != "":
				return usagef("cannot copy between two containers: either the source or the target must be a path on the host")
			case from != "":
				return copyOut(cmd.Context(), conn.Client, from, fromPath, args[1])
			case to != "":
				return copyIn(cmd.Context(), conn.Client, args[0], to, toPath)
			}
			return usagef("either the source or the target must be CONTAINER:PATH")
		}),
		ValidArgsFunction: a.completeContainers,
	}
}

// splitCopy splits CONTAINER:PATH. An argument that starts with a dot or a slash,
// or has no colon, is a path on the host.
func splitCopy(arg string) (container, path string) {
	i := strings.IndexByte(arg, ':')
	if i <= 0 || arg[0] == '.' || arg[0] == '/' {
		return "", arg
	}
	return arg[:i], arg[i+1:]
}

// onlyContents reports whether a source means what is in a directory, not the directory.
func onlyContents(source string) bool {
	return source == "." || strings.HasSuffix(source, "/.")
}

func copyOut(ctx context.Context, c *client.Client, ref, from, to string) error {
	x, err := c.Container(ctx, ref)
	if err != nil {
		return err
	}
	if to == "-" {
		return c.CopyOut(ctx, x.Id, from, os.Stdout)
	}
	dir, name, err := localTarget(to, path.Base(path.Clean("/"+from)))
	if err != nil {
		return err
	}
	if st, err := os.Stat(to); err == nil && st.IsDir() && onlyContents(from) {
		name = "."
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("copy to %s: %w", to, err)
	}
	defer root.Close()
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := c.CopyOut(ctx, x.Id, from, w)
		w.CloseWithError(err)
		done <- err
	}()
	err = tree.Unpack(ctx, root, name, r)
	r.CloseWithError(err)
	if sent := <-done; sent != nil && !errors.Is(sent, io.ErrClosedPipe) {
		return sent
	}
	return err
}

// localTarget returns the directory and the name for a copy of a file named base:
// inside an existing directory, or under a new name.
func localTarget(to, base string) (dir, name string, err error) {
	st, err := os.Stat(to)
	switch {
	case err == nil && st.IsDir():
		return to, base, nil
	case err == nil, os.IsNotExist(err) && !strings.HasSuffix(to, "/"):
		return filepath.Dir(to), filepath.Base(to), nil
	case os.IsNotExist(err):
		return "", "", fmt.Errorf("%s is not a directory", to)
	}
	return "", "", err
}

func copyIn(ctx context.Context, c *client.Client, from, ref, to string) error {
	x, err := c.Container(ctx, ref)
	if err != nil {
		return err
	}
	if from == "-" {
		return c.CopyIn(ctx, x.Id, to, os.Stdin)
	}
	abs, err := filepath.Abs(from)
	if err != nil {
		return err
	}
	rootDir, err := os.Open("/")
	if err != nil {
		return err
	}
	defer rootDir.Close()
	place, err := tree.At(rootDir, abs)
	if err != nil {
		return err
	}
	defer place.Close()
	if !place.Exists {
		return fmt.Errorf("copy %s: %w", from, tree.ErrNotFound)
	}
	info, err := c.CopyInfo(ctx, x.Id, to)
	if err != nil {
		return err
	}
	dir, name := to, filepath.Base(abs)
	switch {
	case onlyContents(from) && !place.IsDir:
		return fmt.Errorf("%s is not a directory", from)
	case info.IsDir && onlyContents(from):
		name = "."
	case info.IsDir:
	case strings.HasSuffix(to, "/"):
		return fmt.Errorf("%s is not a directory in container %s", to, x.Name())
	case info.Exists && place.IsDir:
		return fmt.Errorf("%s is a file in container %s; a directory cannot replace it", to, x.Name())
	default:
		dir, name = path.Split(path.Clean("/" + to))
	}
	r, w := io.Pipe()
	go func() { w.CloseWithError(tree.PackAs(place, name, w)) }()
	defer r.Close()
	return c.CopyIn(ctx, x.Id, dir, r)
}
