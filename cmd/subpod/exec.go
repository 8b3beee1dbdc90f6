package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/client"
)

func newExec(a *app) *cobra.Command {
	var interactive, tty bool
	cmd := &cobra.Command{
		Use:   "exec [flags] CONTAINER COMMAND [ARG...]",
		Short: "Run a command in a running container",
		Long: `Runs a command in a running container. The exit code is that of the command, or
125 if subpod itself failed, 126 if the command cannot be executed, 127 if the
command is not found.`,
		Example: "  subpod exec web nginx -t\n  subpod exec -it web sh",
		Args:    atLeast(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if tty && interactive && !isTerminal(os.Stdin) {
				return usagef("-t: standard input is not a terminal; omit -t to use a pipe")
			}
			return runCode(a.run(func(cmd *cobra.Command, conn *connection, args []string) error {
				x, err := conn.Container(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				s := &session{client: conn.Client, containerID: x.Id, tty: tty, stdin: interactive}
				exit, err := s.run(cmd.Context(), api.SessionRequest{Kind: api.SessionExec, Command: args[1:]})
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
	cmd.Flags().BoolVarP(&interactive, "interactive", "i", false, "keep standard input open and forward it")
	cmd.Flags().BoolVarP(&tty, "tty", "t", false, "allocate a terminal")
	return cmd
}

// runCode prints the error of a command that runs another one, and returns the exit
// code for it: one that few programs use themselves.
func runCode(err error) error {
	var code exitStatus
	if err == nil || errors.As(err, &code) || errors.Is(err, errUsage) {
		return err
	}
	fmt.Fprintln(os.Stderr, "subpod:", plainLines(err.Error()))
	switch {
	case client.HasReason(err, api.ReasonCommandNotFound):
		return exitStatus(exitNoCommand)
	case client.HasReason(err, api.ReasonCommandNotExecutable):
		return exitStatus(exitNotExecutable)
	}
	return exitStatus(exitRun)
}

func newAttach(a *app) *cobra.Command {
	var noStdin bool
	cmd := &cobra.Command{
		Use:   "attach [flags] CONTAINER",
		Short: "Attach to a running container",
		Long: `Attaches to the standard streams of a container until it exits; the exit code is
that of the container. If it has a terminal, ctrl-p ctrl-q detaches from it and
leaves it running.`,
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
			exit, err := s.run(cmd.Context(), api.SessionRequest{Kind: api.SessionAttach, Wait: true})
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
	cmd.Flags().BoolVar(&noStdin, "no-stdin", false, "do not forward standard input")
	return cmd
}
