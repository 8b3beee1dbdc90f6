package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/client"
)

func newVolume(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "volume",
		Short: "Make, list, remove, export and import volumes",
		Long: `Volumes are directories that outlive containers; "run -v NAME:PATH" mounts one, and
makes it if it is missing. An empty volume gets what the image has at PATH. Their files
belong to the users of containers: "subpod unshare" runs commands as root over them.`,
		Example: "  subpod volume create data\n  subpod run --rm -v data:/data busybox touch /data/x\n  subpod volume export data > data.tar",
		Args:    none(),
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	for _, c := range []*cobra.Command{newVolumeCreate(a), newVolumeLs(a), newVolumeInspect(a), newVolumeExists(a),
		newVolumeRm(a), newVolumePrune(a), newVolumeExport(a), newVolumeImport(a)} {
		c.Args = usageArgs(c.Args)
		cmd.AddCommand(c)
	}
	return cmd
}

func newVolumeCreate(a *app) *cobra.Command {
	var labels []string
	var ignore bool
	var driver string
	cmd := &cobra.Command{
		Use:     "create [flags] [NAME]",
		Short:   "Make a volume",
		Example: "  subpod volume create -l tier=db data",
		Args:    between(0, 1),
		RunE: a.runStarting(func(cmd *cobra.Command, conn *connection, args []string) error {
			name := randomHex(32)
			if len(args) == 1 {
				name = args[0]
			}
			if driver != "local" {
				return usagef("--driver %s is refused: volumes are directories (local)", driver)
			}
			set := map[string]string{}
			for _, l := range labels {
				name, value, _ := strings.Cut(l, "=")
				set[name] = value
			}
			_, err := client.CreateVolume(cmd.Context(), conn.Client, name, set)
			if err != nil && !(ignore && isExists(cmd.Context(), conn.Client, name)) {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), name)
			return nil
		}),
	}
	f := cmd.Flags()
	f.StringArrayVarP(&labels, "label", "l", nil, "label as NAME=VALUE")
	f.BoolVar(&ignore, "ignore", false, "a volume of that name is no error")
	f.StringVarP(&driver, "driver", "d", "local", "local is the only one")
	addRefused(f, refused{
		"opt/o": "a volume is a directory; what needs a mount of its own needs root",
		"uid":   notYet + "use \"subpod unshare chown\"",
		"gid":   notYet + "use \"subpod unshare chown\"",
	})
	return cmd
}

func isExists(ctx context.Context, c *client.Client, name string) bool {
	_, err := volumeOf(ctx, c, name)
	return err == nil
}

// volumeOf returns the volume of a name, or of the unique beginning of one.
func volumeOf(ctx context.Context, c *client.Client, name string) (api.Volume, error) {
	list, err := client.Volumes(ctx, c)
	if err != nil {
		return api.Volume{}, err
	}
	var found []api.Volume
	for _, v := range list {
		if v.Name == name {
			return v, nil
		}
		if strings.HasPrefix(v.Name, name) && name != "" {
			found = append(found, v)
		}
	}
	switch len(found) {
	case 0:
		return api.Volume{}, fmt.Errorf("volume %q: %w", name, client.ErrNotFound)
	case 1:
		return found[0], nil
	}
	return api.Volume{}, fmt.Errorf("%w: %q matches %d volumes", client.ErrAmbiguous, name, len(found))
}

func newVolumeLs(a *app) *cobra.Command {
	var quiet, noHeading bool
	var filters []string
	var out *format
	cmd := &cobra.Command{
		Use:     "ls [flags]",
		Aliases: []string{"list"},
		Short:   "List volumes",
		Example: "  subpod volume ls\n  subpod volume ls --filter dangling=true -q",
		Args:    exactly(0),
		RunE: a.run(func(cmd *cobra.Command, conn *connection, _ []string) error {
			if err := out.check(); err != nil {
				return err
			}
			list, err := client.Volumes(cmd.Context(), conn.Client)
			if err == nil {
				list, err = filterVolumes(list, filters)
			}
			if err != nil {
				return err
			}
			if quiet {
				for _, v := range list {
					fmt.Fprintln(cmd.OutOrStdout(), v.Name)
				}
				return nil
			}
			out.noHeading = noHeading
			return printList(cmd.OutOrStdout(), out, volumeRows(list), []column[volumeRow]{
				{"DRIVER", func(volumeRow) string { return "local" }},
				{"VOLUME NAME", func(v volumeRow) string { return v.Name }},
				{"CREATED", func(v volumeRow) string { return ago(v.Created) }},
				{"CONTAINERS", func(v volumeRow) string { return fmt.Sprint(len(v.Containers)) }},
			})
		}),
	}
	out = addFormat(cmd)
	out.addGoFormat(cmd, "")
	f := cmd.Flags()
	f.BoolVarP(&quiet, "quiet", "q", false, "names only")
	f.BoolVarP(&noHeading, "noheading", "n", false, "leave out the line of titles")
	f.StringArrayVarP(&filters, "filter", "f", nil, "NAME=VALUE: dangling, driver, label, name, since or until")
	return cmd
}

// volumeRow is a volume with the fields that Podman and Docker have.
type volumeRow struct{ api.Volume }

func (r volumeRow) fields() map[string]any {
	return map[string]any{
		"Driver": "local", "Scope": "local", "CreatedAt": r.Created.Format(time.RFC3339), "Labels": notNil(r.Labels), "Options": map[string]string{},
		"MountCount": len(r.Containers),
	}
}

func volumeRows(list []api.Volume) []volumeRow {
	rows := make([]volumeRow, 0, len(list))
	for _, v := range list {
		rows = append(rows, volumeRow{v})
	}
	return rows
}

// filterVolumes returns the volumes for which all filters hold.
func filterVolumes(list []api.Volume, filters []string) ([]api.Volume, error) {
	return filtered(list, filters, "dangling, driver, label, name, since, until", func(text, name, value string) (func(api.Volume) bool, error) {
		switch name {
		case "dangling":
			yes, err := filterBool(text, value)
			return func(v api.Volume) bool { return (len(v.Containers) == 0) == yes }, err
		case "driver":
			return func(api.Volume) bool { return value == "local" }, nil
		case "name":
			pattern, err := filterPattern(text, value)
			return func(v api.Volume) bool { return pattern.MatchString(v.Name) }, err
		case "label":
			return func(v api.Volume) bool { return hasLabel(v.Labels, value) }, nil
		case "label!":
			return func(v api.Volume) bool { return !hasLabel(v.Labels, value) }, nil
		case "until", "since":
			at, err := parseTime("--filter "+name, value, time.Now())
			return func(v api.Volume) bool { return v.Created.Before(at) == (name == "until") }, err
		}
		return nil, nil
	})
}

func newVolumeInspect(a *app) *cobra.Command {
	var all bool
	var out *format
	cmd := &cobra.Command{
		Use:     "inspect [flags] NAME...",
		Short:   "Show details of volumes",
		Example: "  subpod volume inspect data",
		Args:    argsOrAll(&all),
		RunE: a.run(func(cmd *cobra.Command, conn *connection, args []string) error {
			if err := out.check(); err != nil {
				return err
			}
			list := []api.Volume{}
			var err error
			if all {
				list, err = client.Volumes(cmd.Context(), conn.Client)
			}
			for _, name := range args {
				v, getErr := volumeOf(cmd.Context(), conn.Client, name)
				if getErr != nil {
					return getErr
				}
				list = append(list, v)
			}
			if err != nil {
				return err
			}
			return printList(cmd.OutOrStdout(), out, volumeRows(list), nil)
		}),
	}
	out = addFormat(cmd)
	must(cmd.Flags().Set("output", "json"))
	cmd.Flags().Lookup("output").DefValue = "json"
	out.addGoFormat(cmd, "f")
	cmd.Flags().BoolVarP(&all, "all", "a", false, "all volumes")
	return cmd
}

func newVolumeExists(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "exists NAME",
		Short:   "Exit with 0 if there is the volume, with 1 if not",
		Example: "  subpod volume exists data || subpod volume create data",
		Args:    exactly(1),
		RunE: a.run(func(cmd *cobra.Command, conn *connection, args []string) error {
			list, err := client.Volumes(cmd.Context(), conn.Client)
			if err != nil {
				return err
			}
			if !slices.ContainsFunc(list, func(v api.Volume) bool { return v.Name == args[0] }) {
				return exitStatus(exitError)
			}
			return nil
		}),
	}
}

func newVolumeRm(a *app) *cobra.Command {
	var force, all bool
	var timeout int64
	cmd := &cobra.Command{
		Use:     "rm [flags] NAME...",
		Aliases: []string{"remove"},
		Short:   "Remove volumes",
		Example: "  subpod volume rm data\n  subpod volume rm --all",
		Args:    argsOrAll(&all),
		RunE: a.run(func(cmd *cobra.Command, conn *connection, args []string) error {
			ctx := cmd.Context()
			if all {
				list, err := client.Volumes(ctx, conn.Client)
				if err != nil {
					return err
				}
				for _, v := range list {
					args = append(args, v.Name)
				}
			}
			return each(args, func(name string) error {
				v, err := volumeOf(ctx, conn.Client, name)
				if errors.Is(err, client.ErrNotFound) && force {
					return nil
				}
				if err != nil {
					return err
				}
				if force {
					for _, id := range v.Containers {
						if timeout >= 0 {
							_ = stop(ctx, conn, id, timeout) // the removal says what is wrong
						}
						if err := remove(ctx, conn, id, true); err != nil && !errors.Is(err, client.ErrNotFound) {
							return err
						}
					}
				}
				if _, err := client.RemoveVolume(ctx, conn.Client, v.Name, force); err != nil {
					return err
				}
				fmt.Fprintln(cmd.OutOrStdout(), v.Name)
				return nil
			})
		}),
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also remove the containers that have the volume; ignore what does not exist")
	cmd.Flags().BoolVarP(&all, "all", "a", false, "all volumes")
	cmd.Flags().Int64VarP(&timeout, "time", "t", -1, "with -f, seconds to wait before containers are killed")
	return cmd
}

func newVolumePrune(a *app) *cobra.Command {
	var force, all, dryRun bool
	var filters []string
	cmd := &cobra.Command{
		Use:     "prune [flags]",
		Short:   "Remove volumes that no container has",
		Example: "  subpod volume prune --force",
		Args:    exactly(0),
		RunE: a.run(func(cmd *cobra.Command, conn *connection, _ []string) error {
			list, err := client.Volumes(cmd.Context(), conn.Client)
			if err == nil {
				list, err = unusedVolumes(list, filters)
			}
			if err != nil {
				return err
			}
			if dryRun {
				for _, v := range list {
					fmt.Fprintln(cmd.OutOrStdout(), v.Name)
				}
				return nil
			}
			if err := confirm(cmd, force, fmt.Sprintf("Remove %d volumes that no container has?", len(list))); err != nil {
				return err
			}
			return pruneVolumes(cmd.Context(), cmd.OutOrStdout(), conn.Client, "", filters)
		}),
	}
	f := cmd.Flags()
	f.BoolVarP(&force, "force", "f", false, "do not ask for confirmation")
	f.BoolVarP(&all, "all", "a", false, "no effect: volumes without a name go with their container")
	f.BoolVar(&dryRun, "dry-run", false, "only list what would go")
	f.StringArrayVar(&filters, "filter", nil, "NAME=VALUE, as \"volume ls\" has it")
	return cmd
}

// unusedVolumes returns the volumes that no container has, and for which the filters hold:
// "dangling=false" among them, too, leaves none that a container has.
func unusedVolumes(list []api.Volume, filters []string) ([]api.Volume, error) {
	list, err := filterVolumes(list, filters)
	return slices.DeleteFunc(list, func(v api.Volume) bool { return len(v.Containers) > 0 }), err
}

// pruneVolumes removes the volumes that no container has, and for which the filters hold,
// and prints their names.
func pruneVolumes(ctx context.Context, out io.Writer, c *client.Client, prefix string, filters []string) error {
	list, err := client.Volumes(ctx, c)
	if err == nil {
		list, err = unusedVolumes(list, filters)
	}
	errs := []error{err}
	for _, v := range list {
		_, err := client.RemoveVolume(ctx, c, v.Name, true)
		if errs = append(errs, err); err == nil {
			fmt.Fprintf(out, "%s%s\n", prefix, v.Name)
		}
	}
	return errors.Join(errs...)
}

func newVolumeExport(a *app) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:     "export [flags] NAME",
		Short:   "Write the content of a volume as a tar stream",
		Example: "  subpod volume export -o data.tar data",
		Args:    exactly(1),
		RunE: a.run(func(cmd *cobra.Command, conn *connection, args []string) (err error) {
			var out io.Writer = os.Stdout
			if file == "" && isTerminal(os.Stdout) {
				return usagef("refusing to write an archive to a terminal: use -o FILE or redirect the output")
			}
			if _, err := volumeOf(cmd.Context(), conn.Client, args[0]); err != nil {
				return err
			}
			if file != "" {
				f, createErr := os.CreateTemp(dirOf(file), ".export-*")
				if createErr != nil {
					return fmt.Errorf("write the archive: %w", createErr)
				}
				out = f
				defer func() { err = finishFile(f, file, err) }()
			}
			return client.ExportVolume(cmd.Context(), conn.Client, args[0], func(b []byte) error {
				_, err := out.Write(b)
				return err
			})
		}),
	}
	cmd.Flags().StringVarP(&file, "output", "o", "", "file to write (default: standard output)")
	return cmd
}

func newVolumeImport(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "import NAME FILE|-",
		Short:   "Add the content of a tar stream to a volume",
		Long:    "Adds the content of a tar stream to a volume. On an error the volume is as it was before.",
		Example: "  subpod volume import data data.tar\n  ssh host subpod volume export data | subpod volume import data -",
		Args:    exactly(2),
		RunE: a.run(func(cmd *cobra.Command, conn *connection, args []string) error {
			in := os.Stdin
			if args[1] != "-" {
				f, err := os.Open(args[1])
				if err != nil {
					return err
				}
				defer f.Close()
				in = f
			}
			return client.ImportVolume(cmd.Context(), conn.Client, args[0], in)
		}),
	}
}
