package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/client"
)

// statsRow is a row of the output of "stats".
type statsRow struct {
	ID     string  `json:"id"`
	Name   string  `json:"name"`
	CPU    float64 `json:"cpuPercent"` // of one processor
	Memory uint64  `json:"memoryBytes"`
	Limit  uint64  `json:"memoryLimitBytes"`
	RSS    uint64  `json:"rssBytes"`
	Disk   uint64  `json:"writableLayerBytes"`
}

func newStats(a *app) *cobra.Command {
	o := &statsFlags{}
	cmd := &cobra.Command{
		Use:   "stats [flags] [CONTAINER...]",
		Short: "Show the resource usage of containers",
		Long: `Shows CPU, memory and disk usage of the running containers: on a terminal updated
every second, else once.`,
		Example: "  subpod stats\n  subpod stats --no-stream -o json\n  subpod stats --no-stream --format '{{.Name}} {{.CPUPerc}}'",
		Args:    cobra.ArbitraryArgs,
		RunE: a.run(func(cmd *cobra.Command, conn *connection, args []string) error {
			if err := o.out.check(); err != nil {
				return err
			}
			return o.run(cmd, conn, args)
		}),
		ValidArgsFunction: a.completeContainers,
	}
	o.out = addFormat(cmd)
	o.out.addGoFormat(cmd, "")
	f := cmd.Flags()
	f.BoolVar(&o.once, "no-stream", false, "print once and exit")
	f.BoolVar(&o.noReset, "no-reset", false, "do not clear the screen before an update")
	f.BoolVar(&o.noTrunc, "no-trunc", false, "show whole IDs")
	f.BoolVarP(&o.all, "all", "a", false, "also list containers that do not run")
	f.StringVarP(&o.interval, "interval", "i", "1s", "time between two updates; seconds without a unit")
	return a.withLatest(cmd, true)
}

// statsFlags are the flags of "stats".
type statsFlags struct {
	once, noReset, noTrunc, all bool
	interval                    string
	out                         *format
}

func (o *statsFlags) run(cmd *cobra.Command, conn *connection, args []string) error {
	interval, err := time.ParseDuration(o.interval)
	if n, numErr := strconv.Atoi(o.interval); numErr == nil {
		interval, err = time.Duration(n)*time.Second, nil
	}
	if err != nil {
		return usagef("invalid --interval %q: expected a number of seconds, or a duration such as 500ms", o.interval)
	}
	if interval < 100*time.Millisecond {
		return usagef("invalid --interval %v: the minimum is 100ms", interval)
	}
	ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	live := !o.once && o.out.value == "table" && isTerminal(os.Stdout)
	s := &sampler{client: conn.Client, all: o.all, last: map[string]sample{}}
	rows, err := s.first(ctx, args, min(interval, firstPause))
	for err == nil && ctx.Err() == nil {
		if live && !o.noReset {
			fmt.Print("\x1b[H\x1b[J")
		}
		if err := o.print(cmd.OutOrStdout(), rows); err != nil || !live {
			return err
		}
		rows, err = s.after(ctx, interval, args)
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// fields implements named, with the names of Podman and Docker.
func (r statsRow) fields() map[string]any {
	usage, percent := bytesText(r.Memory)+" / --", "--"
	if r.Limit > 0 {
		usage, percent = bytesText(r.Memory)+" / "+bytesText(r.Limit), fmt.Sprintf("%.2f%%", 100*float64(r.Memory)/float64(r.Limit))
	}
	return map[string]any{
		"ID": shortID(r.ID), "ContainerID": r.ID, "Container": shortID(r.ID), "CPU": r.CPU, "CPUPerc": fmt.Sprintf("%.2f%%", r.CPU),
		"MemUsage": usage, "MemPerc": percent, "MemLimit": r.Limit, "MemUsageBytes": r.Memory,
	}
}

func (o *statsFlags) print(w io.Writer, rows []statsRow) error {
	return printList(w, o.out, rows, []column[statsRow]{
		{"CONTAINER ID", func(r statsRow) string {
			if o.noTrunc {
				return r.ID
			}
			return shortID(r.ID)
		}},
		{"CPU", func(r statsRow) string { return fmt.Sprintf("%.1f%%", r.CPU) }},
		{"MEMORY", func(r statsRow) string {
			if r.Limit == 0 {
				return bytesText(r.Memory)
			}
			return bytesText(r.Memory) + " of " + bytesText(r.Limit)
		}},
		{"RSS", func(r statsRow) string { return bytesText(r.RSS) }},
		{"DISK", func(r statsRow) string { return bytesText(r.Disk) }},
		{"NAME", func(r statsRow) string { return r.Name }},
	})
}

// sample is the CPU time of a container at one point in time, and its rate until then.
type sample struct {
	at   int64
	cpu  uint64
	rate float64 // percent of one processor
	has  bool    // a rate, which the first sample has not
}

// sampler computes rates from two samples.
type sampler struct {
	client *client.Client
	all    bool // also what does not run
	last   map[string]sample
	// waits is set while a container has no rate because the server has used its first
	// measurement again.
	waits bool
}

const (
	// firstPause is the time between the samples of the first rates, at most.
	firstPause = 500 * time.Millisecond
	// ratePatience bounds the wait for those: where many processes run, the server uses a
	// measurement for up to a second (pkg/stats).
	ratePatience = 2 * time.Second
)

// first returns rows with the rates of all that runs, of which each needs two samples.
func (s *sampler) first(ctx context.Context, refs []string, pause time.Duration) ([]statsRow, error) {
	rows, err := s.rows(ctx, refs)
	for end := time.Now().Add(ratePatience); err == nil; {
		rows, err = s.after(ctx, pause, refs)
		if !s.waits || time.Now().After(end) {
			break
		}
	}
	return rows, err
}

// after returns the rows after a pause.
func (s *sampler) after(ctx context.Context, pause time.Duration, refs []string) ([]statsRow, error) {
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-time.After(pause):
	}
	return s.rows(ctx, refs)
}

func (s *sampler) rows(ctx context.Context, refs []string) ([]statsRow, error) {
	list, err := s.client.Containers(ctx)
	if err != nil {
		return nil, err
	}
	wanted := map[string]bool{}
	for _, ref := range refs {
		x, err := s.client.Container(ctx, ref)
		if err != nil {
			return nil, err
		}
		wanted[x.Id] = true
	}
	resp, err := s.client.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
	if err != nil {
		return nil, err
	}
	names := map[string]string{}
	for _, x := range list {
		names[x.Id] = x.Name()
	}
	var rows []statsRow
	last := map[string]sample{}
	s.waits = false
	for _, st := range resp.Stats {
		id := st.GetAttributes().GetId()
		if names[id] == "" || len(wanted) > 0 && !wanted[id] { // without a name: it has come since the list
			continue
		}
		now := sample{at: st.GetCpu().GetTimestamp(), cpu: st.GetCpu().GetUsageCoreNanoSeconds().GetValue()}
		switch before, ok := s.last[id]; {
		case ok && now.at > before.at && now.cpu >= before.cpu:
			now.rate, now.has = float64(now.cpu-before.cpu)/float64(now.at-before.at)*100, true
		case ok && now.at == before.at && now.at != 0: // the same measurement
			now = before
			s.waits = s.waits || !now.has
		}
		row := statsRow{
			ID: id, Name: names[id], CPU: now.rate,
			Memory: st.GetMemory().GetWorkingSetBytes().GetValue(),
			RSS:    st.GetMemory().GetRssBytes().GetValue(),
			Disk:   st.GetWritableLayer().GetUsedBytes().GetValue(),
		}
		if free := st.GetMemory().GetAvailableBytes().GetValue(); free > 0 {
			row.Limit = row.Memory + free
		}
		last[id] = now
		rows = append(rows, row)
	}
	s.last = last
	for _, x := range list {
		has := slices.ContainsFunc(rows, func(r statsRow) bool { return r.ID == x.Id })
		if s.all && !has && (len(wanted) == 0 || wanted[x.Id]) {
			rows = append(rows, statsRow{ID: x.Id, Name: x.Name()})
		}
	}
	slices.SortFunc(rows, func(a, b statsRow) int { return strings.Compare(a.Name, b.Name) })
	return rows, nil
}
