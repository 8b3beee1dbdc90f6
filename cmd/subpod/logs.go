package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/cmd/internal/logs"
	"github.com/subpod/subpod/pkg/client"
)

func newLogs(a *app) *cobra.Command {
	var o logs.Options
	var since string
	cmd := &cobra.Command{
		Use:     "logs [flags] CONTAINER",
		Short:   "Show the logs of a container",
		Example: "  subpod logs web\n  subpod logs -f --tail 20 web\n  subpod logs --since 10m --timestamps web/nginx",
		Args:    exactly(1),
		RunE: a.run(func(cmd *cobra.Command, conn *connection, args []string) (err error) {
			if o.Since, err = parseSince(since, time.Now()); err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM)
			defer stop()
			return showLog(ctx, conn.Client, args[0], o, os.Stdout, os.Stderr)
		}),
		ValidArgsFunction: a.completeContainers,
	}
	cmd.Flags().BoolVarP(&o.Follow, "follow", "f", false, "follow the log until the container exits")
	cmd.Flags().StringVar(&since, "since", "", "only entries newer than a duration (10m) or a time (2006-01-02T15:04:05Z)")
	cmd.Flags().IntVarP(&o.Tail, "tail", "n", -1, "only the last lines (-1: all)")
	cmd.Flags().BoolVarP(&o.Timestamps, "timestamps", "t", false, "show timestamps")
	return cmd
}

// parseSince reads a duration before now, or a time.
func parseSince(s string, now time.Time) (time.Time, error) {
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
	return time.Time{}, usagef("invalid --since %q: expected a duration such as 10m, or a time such as 2006-01-02T15:04:05Z", s)
}

func showLog(ctx context.Context, c *client.Client, ref string, o logs.Options, stdout, stderr io.Writer) error {
	x, err := c.Container(ctx, ref)
	if err != nil {
		return err
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
	if o.Follow {
		waited, cancel := context.WithCancel(ctx)
		defer cancel()
		o.Ended = endOf(waited, c, x.Id)
	}
	err = logs.Read(ctx, st.Status.LogPath, o, stdout, stderr)
	if ctx.Err() != nil {
		return nil // interrupted by the user
	}
	return err
}

// logsRetryInterval is the delay before a failed Wait is repeated.
const logsRetryInterval = time.Second

// endOf returns a function that reports whether the container has exited.
func endOf(ctx context.Context, c *client.Client, id string) func() bool {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			_, err := c.Wait(ctx, id)
			if err == nil || client.IsNotFound(err) {
				return
			}
			select { // not started yet, or the server is being replaced
			case <-ctx.Done():
			case <-time.After(logsRetryInterval):
			}
		}
	}()
	return func() bool {
		select {
		case <-ended:
			return true
		default:
			return false
		}
	}
}
