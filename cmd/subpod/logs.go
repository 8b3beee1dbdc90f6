package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/cmd/internal/logs"
	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/client"
)

func newLogs(a *app) *cobra.Command {
	var o logs.Options
	var since, until string
	var names, colour bool
	cmd := &cobra.Command{
		Use:     "logs [flags] CONTAINER...",
		Short:   "Show the logs of containers",
		Example: "  subpod logs web\n  subpod logs -f --tail 20 web\n  subpod logs --since 10m --timestamps web/nginx",
		Args:    atLeast(1),
		RunE: a.run(func(cmd *cobra.Command, conn *connection, args []string) (err error) {
			if o.Since, err = parseTime("--since", since, time.Now()); err != nil {
				return err
			}
			if o.Until, err = parseTime("--until", until, time.Now()); err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM)
			defer stop()
			return showLogs(ctx, conn.Client, args, o, names || colour)
		}),
		ValidArgsFunction: a.completeContainers,
	}
	cmd.Flags().BoolVarP(&o.Follow, "follow", "f", false, "follow the log until the container exits")
	cmd.Flags().StringVar(&since, "since", "", "only entries newer than a duration (10m) or a time (2006-01-02T15:04:05Z)")
	cmd.Flags().StringVar(&until, "until", "", "only entries older than a duration or a time")
	cmd.Flags().IntVar(&o.Tail, "tail", -1, "only the last lines (-1: all)")
	cmd.Flags().BoolVarP(&names, "names", "n", false, "put the name of the container in front of each line")
	cmd.Flags().BoolVar(&colour, "color", false, "no colour, but the name of the container in front of each line")
	cmd.Flags().BoolVarP(&o.Timestamps, "timestamps", "t", false, "show timestamps")
	return a.withLatest(cmd, false)
}

// showLogs shows the logs of several containers: one after the other, or, when they are
// followed, as they are written.
func showLogs(ctx context.Context, c *client.Client, refs []string, o logs.Options, names bool) error {
	if !o.Follow || len(refs) == 1 {
		return each(refs, func(ref string) error {
			return showLog(ctx, c, ref, o, names, os.Stdout, os.Stderr)
		})
	}
	errs := make(chan error, len(refs))
	for _, ref := range refs {
		go func() {
			errs <- showLog(ctx, c, ref, o, names, os.Stdout, os.Stderr)
		}()
	}
	var all []error
	for range refs {
		all = append(all, <-errs)
	}
	return errors.Join(all...)
}

// parseSince is parseTime of --since.
func parseSince(s string, now time.Time) (time.Time, error) { return parseTime("--since", s, now) }

// parseTime reads a duration before now, seconds of the epoch, or a time.
func parseTime(flag, s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", time.DateTime, time.DateOnly} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	if n, err := strconv.ParseInt(s, 10, 64); err == nil && n >= 1e9 {
		return time.Unix(n, 0), nil
	}
	return time.Time{}, usagef("invalid %s %q: expected a duration such as 10m, or a time such as 2006-01-02T15:04:05Z", flag, s)
}

func showLog(ctx context.Context, c *client.Client, ref string, o logs.Options, names bool, stdout, stderr io.Writer) error {
	x, err := c.Container(ctx, ref)
	if err != nil {
		return err
	}
	if names {
		o.Prefix = x.Name() + " "
	}
	st, err := c.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: x.Id})
	if err != nil {
		return err
	}
	if st.Status.LogPath == "" {
		return fmt.Errorf("container %s has no log: it was created with --rm or without a log path", x.Name())
	}
	if _, err := os.Stat(st.Status.LogPath); os.IsNotExist(err) && st.Status.State == runtimeapi.ContainerState_CONTAINER_CREATED {
		return nil // nothing written yet
	}
	if o.Follow && o.Ended == nil {
		waited, cancel := context.WithCancel(ctx)
		defer cancel()
		o.Ended = waitForRun(waited, c, x.Id, x.Metadata.GetAttempt()).hasEnded
	}
	if !o.Follow || o.Tail < 0 { // the older half of a log that has reached its bound
		old := o
		old.Follow, old.Tail = false, -1
		if _, err := os.Stat(st.Status.LogPath + api.OldLog); err == nil && o.Tail < 0 {
			if err := readLog(ctx, x.Name(), st.Status.LogPath+api.OldLog, old, stdout, stderr); err != nil {
				return err
			}
		}
	}
	err = readLog(ctx, x.Name(), st.Status.LogPath, o, stdout, stderr)
	if ctx.Err() != nil {
		return nil // interrupted by the user
	}
	return err
}

// readLog is logs.Read, and only says so where lines are damaged.
func readLog(ctx context.Context, container, path string, o logs.Options, stdout, stderr io.Writer) error {
	err := logs.Read(ctx, path, o, stdout, stderr)
	if errors.Is(err, logs.ErrDamaged) {
		warn("log of %s: %v", container, err)
		return nil
	}
	return err
}

// logsRetryInterval is the delay before a failed Wait is repeated.
const logsRetryInterval = time.Second
