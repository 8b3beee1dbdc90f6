package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/client"
)

// execFlags are the flags of "exec".
type execFlags struct {
	interactive, tty     bool
	options              api.ExecOptions
	env, envFiles        []string
	detachKeys, fromFile string
}

func newExec(a *app) *cobra.Command {
	o := &execFlags{}
	cmd := &cobra.Command{
		Use:   "exec [flags] CONTAINER COMMAND [ARG...]",
		Short: "Run a command in a running container",
		Long: `Runs a command in a running container. The exit code is that of the command, or
125 if subpod itself failed, 126 if the command cannot be executed, 127 if the
command is not found.`,
		Example: "  subpod exec web nginx -t\n  subpod exec -it -u root -w /etc web sh",
		Args: func(cmd *cobra.Command, args []string) error {
			if o.fromFile != "" {
				return atLeast(1)(cmd, args)
			}
			return atLeast(2)(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.tty && o.interactive && !isTerminal(os.Stdin) {
				return usagef("-t: standard input is not a terminal; omit -t to use a pipe")
			}
			return runCode(a.run(o.run)(cmd, args))
		},
		ValidArgsFunction: a.completeContainers,
	}
	f := cmd.Flags()
	f.SetInterspersed(false)
	f.BoolVarP(&o.interactive, "interactive", "i", false, "keep standard input open and forward it")
	f.BoolVarP(&o.tty, "tty", "t", false, "allocate a terminal")
	f.StringArrayVarP(&o.env, "env", "e", nil, "NAME=VALUE, or NAME to copy the variable from the environment")
	f.StringArrayVar(&o.envFiles, "env-file", nil, "file with NAME=VALUE lines")
	f.StringVarP(&o.options.User, "user", "u", "", "UID or user name, optionally with :GID or :group")
	f.StringVarP(&o.options.Dir, "workdir", "w", "", "working directory in the container")
	f.BoolVarP(&o.options.Detach, "detach", "d", false, "run in the background; the output goes nowhere")
	f.BoolVar(&o.options.Privileged, "privileged", false, "give all capabilities of the node: never those of root on the host")
	f.StringVar(&o.detachKeys, "detach-keys", defaultDetachKeys, "keys that detach from the command; \"\" for none")
	f.StringVar(&o.fromFile, "cidfile", "", "read the container's ID from this file instead of the arguments")
	addRefused(f, refusedExec)
	return a.withLatest(cmd, true)
}

var refusedExec = refused{
	"no-session":   "a command that is executed has no session that is kept",
	"preserve-fd":  "the daemon starts the command; it does not have this command's descriptors",
	"preserve-fds": "the daemon starts the command; it does not have this command's descriptors",
}

func (o *execFlags) run(cmd *cobra.Command, conn *connection, args []string) error {
	if o.fromFile != "" {
		id, err := readIDFile("--cidfile", o.fromFile)
		if err != nil {
			return err
		}
		args = append([]string{id}, args...)
	}
	envs, err := environmentOf(false, o.envFiles, o.env)
	if err != nil {
		return err
	}
	for _, kv := range envs {
		o.options.Env = append(o.options.Env, kv.Key+"="+string(kv.Value))
	}
	keys, err := parseDetachKeys(o.detachKeys)
	if err != nil {
		return err
	}
	x, err := conn.Container(cmd.Context(), args[0])
	if err != nil {
		return err
	}
	s := &session{client: conn.Client, containerID: x.Id, tty: o.tty, stdin: o.interactive && !o.options.Detach, detachKeys: keys}
	exit, err := s.run(cmd.Context(), api.SessionRequest{Kind: api.SessionExec, Command: args[1:], Exec: &o.options})
	if errors.Is(err, errDetached) {
		return nil
	}
	if err == nil && exit.Code != 0 {
		return exitStatus(exit.Code)
	}
	return err
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
	var noStdin, proxy bool
	var detachKeys string
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
			s := &session{client: conn.Client, containerID: x.Id, tty: config.TTY, stdin: config.Stdin && !noStdin, signals: proxy && !config.TTY}
			if s.detachKeys, err = parseDetachKeys(detachKeys); err != nil {
				return err
			}
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
	cmd.Flags().BoolVar(&proxy, "sig-proxy", true, "forward signals to the container")
	cmd.Flags().StringVar(&detachKeys, "detach-keys", defaultDetachKeys, "keys that detach from the container; \"\" for none")
	return a.withLatest(cmd, false)
}
