package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os/signal"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/client"
)

func newSystemTrace(a *app) *cobra.Command {
	var req api.TraceRequest
	var out string
	cmd := &cobra.Command{
		Use:   "trace [flags] [ID|NAME]",
		Short: "Show where the time of requests goes",
		Long: `Shows requests to the server as trees of steps, each with its start since that of the
request and its duration: the last ones, or with --slowest the slowest of the last hour, and
with -f those that end from then on. ID or NAME is (the beginning of) the ID of a pod, a
container or a trace, or the name of a pod or an image. The server keeps some hundred
requests in memory; reading requests are among them only when they were slow or failed.

-o otlp writes each as a line of OTLP/JSON, which a collector of OpenTelemetry reads
(receiver otlpjsonfile) or takes by POST at /v1/traces.`,
		Example: "  subpod system trace --slowest -n 3\n  subpod system trace -f --method RunPodSandbox\n  subpod system trace -f -o otlp >>traces.jsonl",
		Args:    between(0, 1),
		RunE: a.run(func(cmd *cobra.Command, conn *connection, args []string) error {
			show, ok := map[string]func(io.Writer, *api.Trace) error{"tree": printTrace, "json": printTraceJSON, "otlp": printTraceOTLP}[out]
			if !ok {
				return usagef("invalid -o %q: expected tree, json or otlp", out)
			}
			if len(args) > 0 {
				req.Match = args[0]
			}
			if req.Follow && !cmd.Flags().Changed("last") && !req.Slowest {
				req.Limit = 0
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM)
			defer stop()
			err := client.Traces(ctx, conn.Client, &req, func(t *api.Trace) error { return show(cmd.OutOrStdout(), t) })
			if errors.Is(ctx.Err(), context.Canceled) {
				return nil
			}
			return err
		}),
	}
	f := cmd.Flags()
	f.BoolVarP(&req.Follow, "follow", "f", false, "show requests as they end, until interrupted")
	f.BoolVar(&req.Slowest, "slowest", false, "the slowest of late, not the last ones")
	f.IntVarP(&req.Limit, "last", "n", 10, "how many of those that have ended")
	f.StringVar(&req.Method, "method", "", "only requests of this method, such as StartContainer")
	f.DurationVar(&req.Least, "least", 0, "only requests that took this long, such as 50ms")
	f.StringVarP(&out, "output", "o", "tree", "output format: tree, json or otlp (one object per line)")
	return cmd
}

// milliseconds is how times of steps are shown.
func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.2fms", float64(d)/float64(time.Millisecond))
}

func printTrace(w io.Writer, t *api.Trace) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s  %s  %s  %s", t.Start.Format("2006-01-02T15:04:05.000Z07:00"), plain(t.Name), milliseconds(t.Took), plain(t.Code))
	for _, k := range slices.Sorted(maps.Keys(t.Attributes)) {
		v := t.Attributes[k]
		if k == "pod" || k == "container" {
			v = shortID(v)
		}
		fmt.Fprintf(&b, "  %s=%s", plain(k), plain(v))
	}
	b.WriteString("\n")
	if t.Error != "" {
		fmt.Fprintf(&b, "    %s\n", plain(t.Error))
	}
	printSteps(&b, t, -1, "")
	if t.Dropped > 0 {
		fmt.Fprintf(&b, "    and %d more steps\n", t.Dropped)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// printSteps prints the steps below another one, and what is below them.
func printSteps(b *strings.Builder, t *api.Trace, parent int, indent string) {
	if len(indent) > 32 {
		return // no step of ours is so deep
	}
	for i, s := range t.Steps {
		if s.Parent != parent {
			continue
		}
		note := ""
		switch {
		case s.Failed:
			note = "  failed"
		case s.Unended:
			note = "  goes on"
		}
		fmt.Fprintf(b, "    %11s %11s  %s%s%s\n", "+"+milliseconds(s.Start), milliseconds(s.Took), indent, plain(s.Name), note)
		printSteps(b, t, i, indent+"  ")
	}
}

func printTraceJSON(w io.Writer, t *api.Trace) error { return printLine(w, t) }

func printLine(w io.Writer, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(w, plainJSON(string(text)))
	return err
}
