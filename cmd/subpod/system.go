package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/client"
	"github.com/subpod/subpod/rootless"
)

func newSystem(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "system",
		Short: "Look at the server, check, clean up or reset its storage",
		Args:  none(),
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	info, events := newInfo(a), newEvents(a)
	info.Hidden, events.Hidden = true, true // as Docker and Podman have them
	cmd.AddCommand(newSystemCheck(a), newSystemPrune(a), newSystemReset(a), newSystemTrace(a), newSystemLogLevel(a), newSystemMetrics(a), info, events)
	refuse(cmd, "connection", "df", "migrate", "renumber", "service")
	return cmd
}

func newSystemCheck(a *app) *cobra.Command {
	var repair bool
	cmd := &cobra.Command{
		Use:   "check [flags]",
		Short: "Check for damaged and orphaned data",
		Long: `Checks the records and the checksums of all images, and looks for processes, mounts,
root file systems and directories that belong to no pod. The exit code is 1 if there
are findings that are not repaired. Pods keep running.`,
		Example: "  subpod system check\n  subpod system check --repair",
		Args:    none(),
		RunE: a.run(func(cmd *cobra.Command, conn *connection, _ []string) error {
			found, err := conn.Check(cmd.Context(), repair)
			if err != nil {
				return err
			}
			out, left := cmd.OutOrStdout(), 0
			for _, f := range found {
				done := ""
				if f.Repaired {
					done = " (removed)"
				} else {
					left++
				}
				fmt.Fprintf(out, "%s: %s%s\n", f.Part, plain(f.What), done)
				if f.Hint != "" {
					fmt.Fprintf(out, "\t%s\n", plain(f.Hint))
				}
			}
			if left > 0 {
				return fmt.Errorf("%d of %d findings are not repaired; repair them with --repair", left, len(found))
			}
			fmt.Fprintf(out, "%d findings, none is left to repair\n", len(found))
			return nil
		}),
	}
	cmd.Flags().BoolVarP(&repair, "repair", "r", false, "remove damaged and orphaned data")
	addRefused(cmd.Flags(), refused{"force/f": "what a container uses is never removed", "max/m": "layers are kept as long as an image has them", "quick/q": notYet + "all checks are made"})
	return cmd
}

func newSystemPrune(a *app) *cobra.Command {
	var all, force, volumes bool
	cmd := &cobra.Command{
		Use:   "prune [flags]",
		Short: "Remove stopped pods and unnamed images",
		Long: `Removes stopped pods with their containers, and images that have no name and are not
used by a container. With --all, removes every image that is neither used by a
container nor pinned; with --volumes, also the volumes that no container has.`,
		Example: "  subpod system prune\n  subpod system prune --all --force",
		Args:    none(),
		RunE: a.run(func(cmd *cobra.Command, conn *connection, _ []string) error {
			what := "stopped pods and unnamed images"
			if all {
				what = "stopped pods and all unused images"
			}
			if volumes {
				what += ", and volumes that no container has then"
			}
			if err := confirm(cmd, force, "Remove "+what+"?"); err != nil {
				return err
			}
			err := prune(cmd.Context(), cmd.OutOrStdout(), conn.Client, all)
			if volumes {
				err = errors.Join(err, pruneVolumes(cmd.Context(), cmd.OutOrStdout(), conn.Client, "volume ", nil))
			}
			return err
		}),
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also remove images with a name")
	cmd.Flags().BoolVarP(&force, "force", "f", false, "do not ask for confirmation")
	cmd.Flags().BoolVar(&volumes, "volumes", false, "also remove the volumes that no container has")
	addRefused(cmd.Flags(), refused{"filter": notYet + "\"container prune\", \"volume prune\" and \"network prune\" have filters", "build": "images are not built here", "external": "only containers of this runtime are known"})
	return cmd
}

// prune continues after errors, so that one failure does not prevent the others
// from being removed.
func prune(ctx context.Context, out io.Writer, c *client.Client, all bool) error {
	before := imageBytes(ctx, c)
	var errs []error
	pods, err := c.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{
		State: &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY}}})
	if err != nil {
		return err
	}
	for _, p := range pods.Items {
		if restarts, err := supervised(ctx, c, p.Id); err != nil || restarts {
			if err != nil && !client.IsNotFound(err) {
				errs = append(errs, err)
			}
			continue
		}
		if _, err := c.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.Id}); err != nil {
			errs = append(errs, err)
			continue
		}
		fmt.Fprintf(out, "pod %s (%s/%s)\n", shortID(p.Id), plain(p.Metadata.GetNamespace()), plain(p.Metadata.GetName()))
	}
	errs = append(errs, pruneImages(ctx, out, c, all)...)
	if after := imageBytes(ctx, c); before > after {
		fmt.Fprintf(out, "%s freed\n", bytesText(before-after))
	}
	return errors.Join(errs...)
}

// pruneImages removes the images that no container uses: those without a name, or all.
func pruneImages(ctx context.Context, out io.Writer, c *client.Client, all bool) (errs []error) {
	containers, err := c.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return []error{err}
	}
	images, err := c.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		return []error{err}
	}
	for _, i := range images.Images {
		used := slices.ContainsFunc(containers.Containers, func(x *runtimeapi.Container) bool {
			return x.ImageId == i.Id || x.ImageRef == i.Id || slices.Contains(i.RepoDigests, x.ImageRef)
		})
		if used || i.Pinned || len(i.RepoTags) > 0 && !all {
			continue
		}
		if _, err := c.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: i.Id}}); err != nil {
			errs = append(errs, err)
			continue
		}
		fmt.Fprintf(out, "image %s %s\n", shortID(i.Id), plain(strings.Join(i.RepoTags, " ")))
	}
	return errs
}

func imageBytes(ctx context.Context, c *client.Client) (n uint64) {
	resp, err := c.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{})
	if err != nil {
		return 0
	}
	for _, f := range resp.ImageFilesystems {
		n += f.GetUsedBytes().GetValue()
	}
	return n
}

func newSystemReset(a *app) *cobra.Command {
	var force, withVolumes bool
	cmd := &cobra.Command{
		Use:   "reset [flags]",
		Short: "Stop the daemon and remove all its data",
		Long: `Stops the daemon with all pods and removes its images, records, containers and logs,
also files that are owned by subordinate IDs. The configuration is kept, and so are
volumes and secrets without --volumes. Nothing is done when another daemon uses one of
the directories, which are locked meanwhile, or when one was never a daemon's.`,
		Example: "  subpod system reset --force",
		Args:    none(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.flags.Load()
			if err != nil {
				return err
			}
			data, run := filepath.Clean(cfg.Daemon.DataDir), filepath.Clean(cfg.Daemon.RunDir)
			what, keep := resetText(data, run, withVolumes)
			if err := confirm(cmd, force, what); err != nil {
				return err
			}
			return reset(cmd.Context(), cmd.OutOrStdout(), run, data, keep)
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "do not ask for confirmation")
	cmd.Flags().BoolVar(&withVolumes, "volumes", false, "also remove volumes and secrets")
	return cmd
}

// resetText returns the question of "system reset", which says what goes, and the names
// of the directories that stay.
func resetText(data, run string, withVolumes bool) (question string, keep []string) {
	question = "Stop the daemon, and remove all pods and containers with their logs, all images and all records in " + data + " and " + run
	var kept []string
	for _, name := range []string{"volumes", "secrets"} {
		entries, err := os.ReadDir(filepath.Join(data, name))
		n := len(slices.DeleteFunc(entries, func(e os.DirEntry) bool { return strings.HasPrefix(e.Name(), ".") }))
		if err != nil || n == 0 {
			continue
		}
		kept = append(kept, fmt.Sprintf("%d %s", n, name))
		keep = append(keep, name)
	}
	switch {
	case len(kept) == 0:
		return question + "?", nil
	case withVolumes:
		return question + ", also " + strings.Join(kept, " and ") + "?", nil
	}
	return question + "? (" + strings.Join(kept, " and ") + " stay: --volumes removes them, too.)", keep
}

// resetStop bounds the stop of the daemon.
const resetStop = 40 * time.Second

func reset(ctx context.Context, out io.Writer, runDir, dataDir string, keep []string) error {
	stopped, removed, err := rootless.Reset(ctx, runDir, dataDir, resetStop, keep...)
	if stopped {
		fmt.Fprintln(out, "the daemon is stopped")
	}
	for _, dir := range removed {
		rest := ""
		if dir == dataDir && len(keep) > 0 {
			rest = ", but for its " + strings.Join(keep, " and ")
		}
		fmt.Fprintf(out, "removed %s%s\n", dir, rest)
	}
	return err
}

// confirm asks the user for confirmation. It fails if standard input is not a
// terminal.
func confirm(cmd *cobra.Command, force bool, question string) error {
	if force {
		return nil
	}
	if in, ok := cmd.InOrStdin().(*os.File); !ok || !term.IsTerminal(int(in.Fd())) {
		return usagef("%s Standard input is not a terminal to confirm this at: use --force", question)
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%s [y/N] ", question)
	answer, _ := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
	if a := strings.ToLower(strings.TrimSpace(answer)); a != "y" && a != "yes" {
		return errors.New("aborted")
	}
	return nil
}
