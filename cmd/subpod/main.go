// Command subpod is a rootless CRI container runtime: the daemon that creates the
// node, and the commands that talk to the server in it.
package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/subpod/subpod/cmd/internal/cli"
	"github.com/subpod/subpod/rootless"
)

func main() {
	rootless.Dispatch()
	root := newRoot(os.Args[1:]...)
	err := root.Execute()
	if out, ok := root.OutOrStdout().(*output); ok && err == nil {
		err = out.err
	}
	var code exitStatus
	if err != nil && !errors.As(err, &code) {
		fmt.Fprintln(os.Stderr, "subpod:", strings.ReplaceAll(plainLines(err.Error()), "\n", "\nsubpod: "))
	}
	os.Exit(exitCode(err))
}

// exitStatus is an error that has already been reported; the process exits with
// this code.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// newRoot returns the command with those below it; where the first word of args is one that
// acts on its own, with that alone: making all takes longer than most of them do.
func newRoot(args ...string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "subpod",
		Short: "Rootless container runtime with a CRI endpoint",
		Long: `Runs containers and Kubernetes pods as an unprivileged user. The daemon serves the
Container Runtime Interface on a unix socket; the other commands are its clients.

Exit codes: 1 failure, 3 no such container, pod or image, 4 no daemon running, 125
invalid usage. "run" and "exec" exit with the code of the command that they ran, or
125 if subpod itself failed, 126 if the command cannot be executed, 127 if it is not
found.`,
		Example: `  subpod run -it --rm busybox sh
  subpod play pod.yaml
  subpod ps`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		hint := ""
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			hint = "; did you mean " + strings.Join(near, " or ") + "?"
		}
		return usagef("unknown command %q%s (see subpod --help)", args[0], hint)
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	cmd.SuggestionsMinimumDistance = 2
	cmd.SetFlagErrorFunc(flagError)
	cmd.Version = cli.Version(version)
	cmd.SetVersionTemplate("{{.Name}} version {{.Version}}\n")
	out := &output{to: os.Stdout}
	if isTerminal(os.Stdout) {
		out.to = plainWriter{os.Stdout}
	}
	cmd.SetOut(out)
	cmd.SetErr(plainWriter{os.Stderr})
	a := &app{cli.AddFlags(cmd)}
	cmd.AddGroup(
		&cobra.Group{ID: groupContainers, Title: "Containers and pods:"},
		&cobra.Group{ID: groupImages, Title: "Images:"},
		&cobra.Group{ID: groupData, Title: "Volumes and secrets:"},
		&cobra.Group{ID: groupNode, Title: "The daemon and its node:"},
	)
	clients := clientCommands()
	if len(args) > 0 {
		if i := slices.IndexFunc(clients, func(c clientCommand) bool { return c.name == args[0] }); i >= 0 {
			clients[i].add(cmd, a)
			setHelp(cmd)
			return cmd
		}
	}
	for _, c := range clients {
		c.add(cmd, a)
	}
	for _, c := range []*cobra.Command{
		newDaemon(a.flags), newReload(a.flags), newNsenter(a.flags), newUnshare(a.flags), newKubernetes(a),
		newInfo(a), newDoctor(a.flags), newSetup(a.flags), newSystem(a), newVersion(),
	} {
		addTo(cmd, groupNode, c)
	}
	cmd.AddCommand(newMan(), newAssets())
	cmd.AddCommand(refusedTop()...)
	setHelp(cmd)
	return cmd
}

// Groups of commands in the help.
const (
	groupContainers = "containers"
	groupImages     = "images"
	groupData       = "data"
	groupNode       = "node"
)
