package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/subpod/subpod/pkg/api"
)

func newTop(a *app) *cobra.Command {
	var out *format
	cmd := &cobra.Command{
		Use:   "top [flags] CONTAINER [DESCRIPTOR...]",
		Short: "List the processes of a container",
		Long: `Lists the processes of a running container; it does not need a ps program. PIDs are
those in the container, UIDs those in the node. Descriptors, separated by blanks or commas,
choose the columns: ` + strings.Join(slices.Sorted(maps.Keys(topColumns)), ", ") + `.`,
		Example: "  subpod top web\n  subpod top web pid,user,args\n  subpod top -o json web",
		Args:    atLeast(1),
		RunE: a.run(func(cmd *cobra.Command, conn *connection, args []string) error {
			if err := out.check(); err != nil {
				return err
			}
			columns, err := topColumnsOf(args[1:])
			if err != nil {
				return err
			}
			x, err := conn.Container(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			list, err := conn.Top(cmd.Context(), x.Id)
			if err != nil {
				return err
			}
			return printList(cmd.OutOrStdout(), out, list, columns)
		}),
		ValidArgsFunction: a.completeContainers,
	}
	out = addFormat(cmd)
	return a.withLatest(cmd, true)
}

// topColumns are the columns of "top" by Podman's descriptors, and by those of ps(1).
var topColumns = map[string]column[api.Process]{
	"pid":   {"PID", func(p api.Process) string { return fmt.Sprint(p.PID) }},
	"ppid":  {"PPID", func(p api.Process) string { return fmt.Sprint(p.PPID) }},
	"user":  {"USER", func(p api.Process) string { return fmt.Sprint(p.UID) }},
	"uid":   {"UID", func(p api.Process) string { return fmt.Sprint(p.UID) }},
	"state": {"STATE", func(p api.Process) string { return p.State }},
	"nlwp":  {"THREADS", func(p api.Process) string { return fmt.Sprint(p.Threads) }},
	"rss":   {"RSS", func(p api.Process) string { return bytesText(p.RSS) }},
	"time":  {"TIME", func(p api.Process) string { return p.CPU.Round(10 * time.Millisecond).String() }},
	"pcpu":  {"%CPU", func(p api.Process) string { return percentOf(p.CPU, time.Since(p.Started)) }},
	"etime": {"ELAPSED", func(p api.Process) string { return time.Since(p.Started).Round(10 * time.Millisecond).String() }},
	"stime": {"STIME", func(p api.Process) string { return p.Started.Format("2006-01-02 15:04:05 -0700 MST") }},
	"args":  {"COMMAND", func(p api.Process) string { return shorten(p.Command, 80) }},
	"comm":  {"COMMAND", func(p api.Process) string { return firstWord(p.Command) }},
	"npid":  {"NODE PID", func(p api.Process) string { return fmt.Sprint(p.NodePID) }},
}

// topTitles are the columns without descriptors.
var topTitles = []column[api.Process]{
	topColumns["pid"], topColumns["ppid"], topColumns["uid"], topColumns["state"], topColumns["nlwp"], topColumns["rss"],
	{"CPU", topColumns["time"].value},
	{"STARTED", func(p api.Process) string { return ago(p.Started) }},
	topColumns["args"],
}

func topColumnsOf(args []string) ([]column[api.Process], error) {
	if len(args) == 0 {
		return topTitles, nil
	}
	aliases := map[string]string{"%c": "pcpu", "cmd": "args", "command": "args", "ruser": "user", "s": "state", "stat": "state", "thcount": "nlwp"}
	var columns []column[api.Process]
	for _, name := range strings.FieldsFunc(strings.Join(args, ","), func(r rune) bool { return r == ',' || r == ' ' }) {
		key := strings.ToLower(name)
		if alias, ok := aliases[key]; ok {
			key = alias
		}
		c, ok := topColumns[key]
		if !ok {
			return nil, usagef("invalid descriptor %q: expected %s (there is no ps(1) that options could be passed to)", name, strings.Join(slices.Sorted(maps.Keys(topColumns)), ", "))
		}
		columns = append(columns, c)
	}
	return columns, nil
}

func percentOf(used, of time.Duration) string {
	if of <= 0 {
		return "0.000"
	}
	return fmt.Sprintf("%.3f", 100*float64(used)/float64(of))
}

func firstWord(command string) string {
	word, _, _ := strings.Cut(strings.TrimSpace(command), " ")
	return word[strings.LastIndexByte(word, '/')+1:]
}
