package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/subpod/subpod/cmd/internal/cli"
	"github.com/subpod/subpod/pkg/client"
	"github.com/subpod/subpod/pkg/config"
	"github.com/subpod/subpod/rootless"
)

// Exit codes, which scripts may rely on. "run" and "exec" exit with the code of
// the command that they ran, or with one of the last three. The one for invalid usage is
// Podman's and Docker's.
const (
	exitError         = 1
	exitNotFound      = 3
	exitNoDaemon      = 4
	exitRun           = 125 // subpod could not run the command, or was called wrongly
	exitNotExecutable = 126
	exitNoCommand     = 127
)

// app is shared by the commands that talk to the daemon.
type app struct{ flags *cli.Flags }

// connection is a configuration and a client of its daemon.
type connection struct {
	*client.Client
	config *config.Config
}

// connect connects to the running daemon. client.ErrNoDaemon.
func (a *app) connect() (*connection, error) {
	cfg, err := clientConfig(a.flags, os.Stderr)
	if err != nil {
		return nil, err
	}
	c, err := client.Dial(cfg.Daemon.Socket)
	if err != nil {
		return nil, err
	}
	c.Grant = granter(cfg)
	return &connection{c, cfg}, nil
}

// granter lets the daemon's node have what a command names of the host.
func granter(cfg *config.Config) func(paths ...string) error {
	return func(paths ...string) error {
		err := rootless.Grant(cfg.Daemon.RunDir, paths...)
		if errors.Is(err, rootless.ErrNoNode) {
			return nil // the daemon is not ours, or about to end: it will say what it lacks
		}
		return err
	}
}

// connectOrStart connects to the daemon, and starts one in the background if none
// is running.
func (a *app) connectOrStart() (*connection, error) {
	conn, err := a.connect()
	if !errors.Is(err, client.ErrNoDaemon) {
		return conn, err
	}
	if _, err := a.startDaemon(context.Background()); err != nil {
		return nil, err
	}
	return a.connect()
}

// run returns a function for a command that needs a running daemon.
func (a *app) run(do func(cmd *cobra.Command, conn *connection, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		conn, err := a.connect()
		if err != nil {
			return err
		}
		defer conn.Close()
		return do(cmd, conn, args)
	}
}

// runStarting is like run, but starts the daemon if none is running.
func (a *app) runStarting(do func(cmd *cobra.Command, conn *connection, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		conn, err := a.connectOrStart()
		if err != nil {
			return err
		}
		defer conn.Close()
		return do(cmd, conn, args)
	}
}

// errUsage reports that a command was called with invalid arguments.
var errUsage = errors.New("usage")

// usageError is errUsage with the message of err.
type usageError struct{ err error }

func (e usageError) Error() string        { return e.err.Error() }
func (e usageError) Unwrap() error        { return e.err }
func (e usageError) Is(target error) bool { return target == errUsage }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// exactly, atLeast and between check the number of arguments.
func none() cobra.PositionalArgs                { return usageArgs(cobra.NoArgs) }
func exactly(n int) cobra.PositionalArgs        { return usageArgs(cobra.ExactArgs(n)) }
func atLeast(n int) cobra.PositionalArgs        { return usageArgs(cobra.MinimumNArgs(n)) }
func between(min, max int) cobra.PositionalArgs { return usageArgs(cobra.RangeArgs(min, max)) }

func usageArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		err := check(cmd, args)
		if err == nil || errors.Is(err, errUsage) {
			return err
		}
		return usageError{fmt.Errorf("%w\nUsage: %s", err, cmd.UseLine())}
	}
}

// exitCode returns the exit code for err.
func exitCode(err error) int {
	var code exitStatus
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	case errors.Is(err, errUsage):
		return exitRun
	case errors.Is(err, client.ErrNoDaemon):
		return exitNoDaemon
	case errors.Is(err, client.ErrNotFound), client.IsNotFound(err):
		return exitNotFound
	}
	return exitError
}

// warn prints a warning: something the user should know that is not an error.
func warn(format string, args ...any) {
	fmt.Fprintln(os.Stderr, "subpod: warning:", plainLines(fmt.Sprintf(format, args...)))
}

// each calls do for each argument, continues after errors, and returns all of
// them.
func each(args []string, do func(arg string) error) error {
	var errs []error
	for _, arg := range args {
		if err := do(arg); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
