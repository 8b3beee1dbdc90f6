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
		Short: "Check, clean up or reset the storage of subpod",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newSystemCheck(a), newSystemPrune(a), newSystemReset(a))
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
		Args:    cobra.NoArgs,
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
	cmd.Flags().BoolVar(&repair, "repair", false, "remove damaged and orphaned data")
	return cmd
}

func newSystemPrune(a *app) *cobra.Command {
	var all, force bool
	cmd := &cobra.Command{
		Use:   "prune [flags]",
		Short: "Remove stopped pods and unnamed images",
		Long: `Removes stopped pods with their containers, and images that have no name and are not
used by a container. With --all, removes every image that is neither used by a
container nor pinned.`,
		Example: "  subpod system prune\n  subpod system prune --all --force",
		Args:    cobra.NoArgs,
		RunE: a.run(func(cmd *cobra.Command, conn *connection, _ []string) error {
			what := "stopped pods and unnamed images"
			if all {
				what = "stopped pods and all unused images"
			}
			if err := confirm(cmd, force, "Remove "+what+"?"); err != nil {
				return err
			}
			return prune(cmd.Context(), cmd.OutOrStdout(), conn.Client, all)
		}),
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also remove images with a name")
	cmd.Flags().BoolVarP(&force, "force", "f", false, "do not ask for confirmation")
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
	containers, err := c.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return err
	}
	images, err := c.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		return err
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
	if after := imageBytes(ctx, c); before > after {
		fmt.Fprintf(out, "%s freed\n", bytesText(before-after))
	}
	return errors.Join(errs...)
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
	var force bool
	cmd := &cobra.Command{
		Use:   "reset [flags]",
		Short: "Stop the daemon and remove all its data",
		Long: `Stops the daemon with all pods and removes its images, records, containers and logs,
also files that are owned by subordinate IDs. The configuration is kept. Nothing is
done when another daemon uses one of the directories, which are locked meanwhile.`,
		Example: "  subpod system reset --force",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.flags.Load()
			if err != nil {
				return err
			}
			data, run := filepath.Clean(cfg.Daemon.DataDir), filepath.Clean(cfg.Daemon.RunDir)
			if err := confirm(cmd, force, "Stop the daemon and remove "+data+" and "+run+"?"); err != nil {
				return err
			}
			return reset(cmd.Context(), cmd.OutOrStdout(), run, data)
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "do not ask for confirmation")
	return cmd
}

// resetStop bounds the stop of the daemon.
const resetStop = 40 * time.Second

func reset(ctx context.Context, out io.Writer, runDir, dataDir string) error {
	stopped, removed, err := rootless.Reset(ctx, runDir, dataDir, resetStop)
	if stopped {
		fmt.Fprintln(out, "the daemon is stopped")
	}
	for _, dir := range removed {
		fmt.Fprintf(out, "removed %s\n", dir)
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
