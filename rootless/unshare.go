package rootless

import (
	"context"
	"errors"
	"os"
	"os/exec"
)

// Unshare runs argv as root over the caller's subordinate IDs, in a user and
// mount namespace made for it, where there is no node to Enter. The IDs are those
// of a node: 0 is the caller, 1 and up are the subordinate ones. It returns the
// exit code once the command has ended; errors are about getting there only.
// opts.HostNetwork is always so.
func Unshare(ctx context.Context, argv []string, opts EnterOptions) (exitCode int, err error) {
	if len(argv) == 0 {
		return -1, errors.New("no command to run")
	}
	// unshare(1) of util-linux, which runs newuidmap and newgidmap.
	cmd := exec.Command("unshare", append([]string{"--user", "--map-root-user", "--map-auto", "--mount", "--"}, argv...)...)
	cmd.Dir = opts.Dir
	cmd.Env = opts.Env
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	cmd.Env = cleanEnv(cmd.Env)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = opts.Stdin, opts.Stdout, opts.Stderr
	return runForwarding(ctx, cmd)
}
