package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/subpod/subpod/pkg/api"
)

func newTop(a *app) *cobra.Command {
	var out *format
	cmd := &cobra.Command{
		Use:   "top [flags] CONTAINER",
		Short: "List the processes of a container",
		Long: `Lists the processes of a running container; it does not need a ps program. PIDs are
those in the container, UIDs those in the node.`,
		Example: "  subpod top web\n  subpod top -o json web",
		Args:    exactly(1),
		RunE: a.run(func(cmd *cobra.Command, conn *connection, args []string) error {
			if err := out.check(); err != nil {
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
			return printList(cmd.OutOrStdout(), out, list, []column[api.Process]{
				{"PID", func(p api.Process) string { return fmt.Sprint(p.PID) }},
				{"PPID", func(p api.Process) string { return fmt.Sprint(p.PPID) }},
				{"UID", func(p api.Process) string { return fmt.Sprint(p.UID) }},
				{"STATE", func(p api.Process) string { return p.State }},
				{"THREADS", func(p api.Process) string { return fmt.Sprint(p.Threads) }},
				{"RSS", func(p api.Process) string { return bytesText(p.RSS) }},
				{"CPU", func(p api.Process) string { return p.CPU.Round(10 * time.Millisecond).String() }},
				{"STARTED", func(p api.Process) string { return ago(p.Started) }},
				{"COMMAND", func(p api.Process) string { return shorten(p.Command, 80) }},
			})
		}),
		ValidArgsFunction: a.completeContainers,
	}
	out = addFormat(cmd)
	return cmd
}
