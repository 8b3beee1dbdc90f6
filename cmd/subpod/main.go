// Command subpod is a rootless CRI container runtime: the daemon that creates the
// node, and the commands that talk to the server in it.
package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/subpod/subpod/cmd/internal/cli"
	"github.com/subpod/subpod/rootless"
)

func main() {
	rootless.Dispatch()
	err := newRoot().Execute()
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

func newRoot() *cobra.Command {
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
	if isTerminal(os.Stdout) {
		cmd.SetOut(plainWriter{os.Stdout})
	}
	cmd.SetErr(plainWriter{os.Stderr})
	a := &app{cli.AddFlags(cmd)}
	cmd.AddGroup(
		&cobra.Group{ID: groupContainers, Title: "Containers and pods:"},
		&cobra.Group{ID: groupImages, Title: "Images:"},
		&cobra.Group{ID: groupData, Title: "Volumes and secrets:"},
		&cobra.Group{ID: groupNode, Title: "The daemon and its node:"},
	)
	add := func(group string, list ...*cobra.Command) {
		for _, c := range list {
			c.GroupID = group
			if c.Args != nil {
				c.Args = usageArgs(c.Args)
			}
			addRefused(c.Flags(), refusedOf[c.Name()])
			cmd.AddCommand(c)
		}
	}
	add(groupContainers, newRun(a), newPlay(a), newPs(a), newPods(a), newLogs(a), newExec(a), newAttach(a),
		newCp(a), newPortForward(a), newCreate(a), newStart(a), newStop(a), newRestart(a), newKill(a),
		newPause(a, false), newPause(a, true), newWait(a), newRename(a), newUpdate(a), newRm(a), newStats(a), newTop(a), newInspect(a), newDiff(a), newCommit(a), newEvents(a), newNetwork(a))
	add(groupImages, newPull(a), newPush(a), newImages(a), newRmi(a), newTag(a), newLoad(a), newSave(a), newHistory(a), newImage(a), newLogin(a), newLogout(a))
	add(groupData, newVolume(a), newSecret(a))
	add(groupNode, newDaemon(a.flags), newReload(a.flags), newNsenter(a.flags), newUnshare(a.flags), newKubernetes(a),
		newInfo(a), newDoctor(a.flags), newSetup(a.flags), newSystem(a), newVersion())
	cmd.AddCommand(newMan(), newAssets())
	cmd.AddCommand(newNouns(a)...)
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
