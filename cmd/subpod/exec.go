package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/subpod/subpod/pkg/client"
	"github.com/subpod/subpod/pkg/control"
)

func newExec(a *app) *cobra.Command {
	var interactive, tty bool
	cmd := &cobra.Command{
		Use:   "exec [flags] CONTAINER COMMAND [ARG...]",
		Short: "Run a command in a running container",
		Long: `Runs a command in a running container. The exit code is the command's; 125 when
subpod itself failed, 126 when the command cannot be executed, 127 when there is
none of that name.`,
		Example: "  subpod exec web nginx -t\n  subpod exec -it web sh",
		Args:    atLeast(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if tty && interactive && !isTerminal(os.Stdin) {
				return usagef("-t: the standard input is not a terminal (for a pipe, leave -t out)")
			}
			return runCode(a.run(func(cmd *cobra.Command, conn *connection, args []string) error {
				x, err := conn.Container(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				s := &session{client: conn.Client, containerID: x.Id, tty: tty, stdin: interactive}
				exit, err := s.run(cmd.Context(), control.SessionRequest{Kind: control.SessionExec, Command: args[1:]})
				if errors.Is(err, errDetached) {
					return nil
				}
				if err == nil && exit.Code != 0 {
					return exitStatus(exit.Code)
				}
				return err
			})(cmd, args))
		},
		ValidArgsFunction: a.completeContainers,
	}
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().BoolVarP(&interactive, "interactive", "i", false, "pass standard input on")
	cmd.Flags().BoolVarP(&tty, "tty", "t", false, "give the command a terminal")
	return cmd
}

// runCode is the exit code of a command that runs another: its own errors have
// codes that few programs use.
func runCode(err error) error {
	var code exitStatus
	if err == nil || errors.As(err, &code) || errors.Is(err, errUsage) {
		return err
	}
	fmt.Fprintln(os.Stderr, "subpod:", err)
	switch {
	case client.HasReason(err, control.ReasonCommandNotFound):
		return exitStatus(exitNoCommand)
	case client.HasReason(err, control.ReasonCommandNotExecutable):
		return exitStatus(exitNotExecutable)
	}
	return exitStatus(exitRun)
}

func newAttach(a *app) *cobra.Command {
	var noStdin bool
	cmd := &cobra.Command{
		Use:   "attach [flags] CONTAINER",
		Short: "Join the streams of a running container",
		Long: `Joins the container's standard streams until it ends; the exit code is the
container's. ctrl-p ctrl-q leaves it running, if it has a terminal.`,
		Example: "  subpod attach shell",
		Args:    exactly(1),
		RunE: a.run(func(cmd *cobra.Command, conn *connection, args []string) error {
			x, err := conn.Container(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			config, err := containerConfig(cmd.Context(), conn.Client, x.Id)
			if err != nil {
				return err
			}
			s := &session{client: conn.Client, containerID: x.Id, tty: config.TTY, stdin: config.Stdin && !noStdin, signals: !config.TTY}
			exit, err := s.run(cmd.Context(), control.SessionRequest{Kind: control.SessionAttach, Wait: true})
			if errors.Is(err, errDetached) {
				return nil
			}
			if err == nil && exit.Code != 0 {
				return exitStatus(exit.Code)
			}
			return err
		}),
		ValidArgsFunction: a.completeContainers,
	}
	cmd.Flags().BoolVar(&noStdin, "no-stdin", false, "do not pass standard input on")
	return cmd
}
