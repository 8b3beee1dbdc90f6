package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/client"
)

func newImage(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "image",
		Short:   "The commands for images, as \"podman image\" has them",
		Example: "  subpod image ls\n  subpod image prune --force",
		Args:    none(),
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	ls := newImages(a)
	ls.Use, ls.Aliases = "ls [flags] [NAME]", []string{"list"}
	rm := newRmi(a)
	rm.Use = "rm [flags] IMAGE..."
	for _, c := range []*cobra.Command{ls, rm, newPull(a), newPush(a), newTag(a), newSave(a), newLoad(a), newHistory(a), newInspectOf(a, "image"), newImagePrune(a), newImageExists(a)} {
		if c.Args != nil {
			c.Args = usageArgs(c.Args)
		}
		addRefused(c.Flags(), refusedOf[c.Name()])
		cmd.AddCommand(c)
	}
	refuse(cmd, "build", "import", "search", "untag", "diff", "mount", "unmount", "scp", "sign", "tree", "trust")
	return cmd
}

func newImageExists(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "exists IMAGE",
		Short:   "Exit with 0 if there is the image, with 1 if not",
		Example: "  subpod image exists busybox || subpod pull busybox",
		Args:    exactly(1),
		RunE: a.run(func(cmd *cobra.Command, conn *connection, args []string) error {
			st, err := conn.ImageStatus(cmd.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: args[0]}})
			if err == nil && st.Image == nil {
				return exitStatus(exitError)
			}
			return err
		}),
	}
}

// historyRow is a row of the output of "history": a step by which an image was made.
type historyRow struct {
	Created   time.Time `json:"created"`
	CreatedBy string    `json:"createdBy"`
	Comment   string    `json:"comment"`
	Empty     bool      `json:"emptyLayer"`
}

func newHistory(a *app) *cobra.Command {
	var quiet, noTrunc bool
	var out *format
	cmd := &cobra.Command{
		Use:     "history [flags] IMAGE",
		Short:   "Show the steps by which an image was made",
		Example: "  subpod history busybox",
		Args:    exactly(1),
		RunE: a.run(func(cmd *cobra.Command, conn *connection, args []string) error {
			if err := out.check(); err != nil {
				return err
			}
			rows, err := history(cmd.Context(), conn.Client, args[0])
			if err != nil {
				return err
			}
			by := func(r historyRow) string {
				if noTrunc {
					return r.CreatedBy
				}
				return shorten(r.CreatedBy, 60)
			}
			if quiet {
				for range rows {
					fmt.Fprintln(cmd.OutOrStdout(), "<missing>")
				}
				return nil
			}
			return printList(cmd.OutOrStdout(), out, rows, []column[historyRow]{
				{"CREATED", func(r historyRow) string { return ago(r.Created) }},
				{"CREATED BY", by},
				{"LAYER", func(r historyRow) string {
					if r.Empty {
						return "-"
					}
					return "yes"
				}},
				{"COMMENT", func(r historyRow) string { return r.Comment }},
			})
		}),
		ValidArgsFunction: a.completeImages,
	}
	out = addFormat(cmd)
	out.addGoFormat(cmd, "")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "IDs only")
	cmd.Flags().BoolVar(&noTrunc, "no-trunc", false, "show whole commands")
	return cmd
}

// history returns the steps of an image, the last one first.
func history(ctx context.Context, c *client.Client, ref string) ([]historyRow, error) {
	st, err := c.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}, Verbose: true})
	if err != nil {
		return nil, err
	}
	if st.Image == nil {
		return nil, fmt.Errorf("image %q: %w", ref, client.ErrNotFound)
	}
	var info struct {
		History []struct {
			Created    time.Time
			CreatedBy  string `json:"created_by"`
			Comment    string
			EmptyLayer bool `json:"empty_layer"`
		}
	}
	if err := json.Unmarshal([]byte(st.Info["info"]), &info); err != nil {
		return nil, fmt.Errorf("decode the status of image %s: %w", ref, err)
	}
	rows := make([]historyRow, 0, len(info.History))
	for _, h := range slices.Backward(info.History) {
		rows = append(rows, historyRow{h.Created, h.CreatedBy, h.Comment, h.EmptyLayer})
	}
	return rows, nil
}

func newImagePrune(a *app) *cobra.Command {
	var all, force bool
	cmd := &cobra.Command{
		Use:   "prune [flags]",
		Short: "Remove unnamed images that no container uses",
		Long: `Removes images that have no name and are not used by a container. With --all, removes
every image that is neither used by a container nor pinned.`,
		Example: "  subpod image prune --all --force",
		Args:    exactly(0),
		RunE: a.run(func(cmd *cobra.Command, conn *connection, _ []string) error {
			what := "unnamed images"
			if all {
				what = "all unused images"
			}
			if err := confirm(cmd, force, "Remove "+what+"?"); err != nil {
				return err
			}
			return errors.Join(pruneImages(cmd.Context(), cmd.OutOrStdout(), conn.Client, all)...)
		}),
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also remove images with a name")
	cmd.Flags().BoolVarP(&force, "force", "f", false, "do not ask for confirmation")
	addRefused(cmd.Flags(), refused{"filter": notYet + "use \"subpod images -q --filter\" with xargs(1)", "build-cache": "images are not built here", "external": "only containers of this runtime are known"})
	return cmd
}
