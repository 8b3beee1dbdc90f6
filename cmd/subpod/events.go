package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/client"
)

// eventRow is one event.
type eventRow struct {
	Time  time.Time `json:"time"`
	Event string    `json:"event"` // created, started, stopped, deleted
	Kind  string    `json:"kind"`  // pod, container
	ID    string    `json:"id"`
	Name  string    `json:"name"`
	// ExitCode of a stopped container.
	ExitCode *int32 `json:"exitCode"`
}

// eventsIdle is the time without an event after which "events" without -f exits.
const eventsIdle = time.Second

func newEvents(a *app) *cobra.Command {
	var follow bool
	var out string
	cmd := &cobra.Command{
		Use:   "events [flags]",
		Short: "Show events of pods and containers",
		Long: `Shows events as they happen until interrupted; without -f, until no event has
arrived for one second.`,
		Example: "  subpod events -f\n  subpod events -f -o json | jq .name",
		Args:    exactly(0),
		RunE: a.run(func(cmd *cobra.Command, conn *connection, _ []string) error {
			if out != "table" && out != "json" && !strings.HasPrefix(out, templatePrefix) {
				return usagef("invalid -o %q: expected table, json or go-template=TEMPLATE", out)
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM)
			defer stop()
			stream, err := conn.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
			if err != nil {
				return err
			}
			heard := func() {}
			if !follow {
				idle := time.AfterFunc(eventsIdle, stop)
				defer idle.Stop()
				heard = func() { idle.Reset(eventsIdle) }
			}
			for {
				e, err := stream.Recv()
				if errors.Is(err, io.EOF) || ctx.Err() != nil {
					return nil
				}
				heard()
				if err != nil {
					return err
				}
				if err := printEvent(cmd.OutOrStdout(), out, newEventRow(e)); err != nil {
					return err
				}
			}
		}),
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "follow events until interrupted")
	cmd.Flags().StringVarP(&out, "output", "o", "table", "output format: table, json (one object per line), or go-template=TEMPLATE")
	return cmd
}

func newEventRow(e *runtimeapi.ContainerEventResponse) eventRow {
	st := e.GetPodSandboxStatus()
	pod := client.PodName(&runtimeapi.PodSandbox{Metadata: st.GetMetadata()})
	name, _ := strings.CutSuffix(strings.TrimPrefix(e.ContainerEventType.String(), "CONTAINER_"), "_EVENT")
	row := eventRow{Time: nanoTime(e.CreatedAt), Event: strings.ToLower(name), Kind: "container", ID: e.ContainerId, Name: pod}
	if e.ContainerId == st.GetId() {
		row.Kind = "pod"
		return row
	}
	for _, c := range e.ContainersStatuses {
		if c.Id != e.ContainerId {
			continue
		}
		row.Name = client.Container{
			Container: &runtimeapi.Container{Metadata: c.Metadata},
			Pod:       &runtimeapi.PodSandbox{Metadata: st.GetMetadata()},
		}.Name()
		if e.ContainerEventType == runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT {
			row.ExitCode = &c.ExitCode
		}
	}
	return row
}

func printEvent(w io.Writer, out string, row eventRow) error {
	switch {
	case out == "json":
		text, err := json.Marshal(row)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(w, plainJSON(string(text)))
		return err
	case strings.HasPrefix(out, templatePrefix):
		tmpl, err := parseTemplate(strings.TrimPrefix(out, templatePrefix))
		if err != nil {
			return err
		}
		return executeTemplate(w, tmpl, row)
	}
	code := ""
	if row.ExitCode != nil {
		code = fmt.Sprintf(" (exit code %d)", *row.ExitCode)
	}
	_, err := fmt.Fprintf(w, "%s  %-9s %-8s %s  %s%s\n", row.Time.Format(time.RFC3339Nano), row.Kind, row.Event, shortID(row.ID), plain(row.Name), code)
	return err
}
