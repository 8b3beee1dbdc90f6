package main

import "github.com/spf13/cobra"

// clientCommand is a command that acts on what the daemon has, and needs no other command.
type clientCommand struct {
	group, name string
	make        func(*app) *cobra.Command
}

func (c clientCommand) add(root *cobra.Command, a *app) { addTo(root, c.group, c.make(a)) }

// addTo adds a command to a group; "" is none, of what is not in the help.
func addTo(root *cobra.Command, group string, cmd *cobra.Command) {
	cmd.GroupID = group
	if cmd.Args != nil && group != "" {
		cmd.Args = usageArgs(cmd.Args)
	}
	if group != "" {
		addRefused(cmd.Flags(), refusedOf[cmd.Name()])
	}
	root.AddCommand(cmd)
}

// clientCommands are in the order of the help.
func clientCommands() []clientCommand {
	return []clientCommand{
		{groupContainers, "run", newRun},
		{groupContainers, "play", newPlay},
		{groupContainers, "ps", newPs},
		{groupContainers, "pods", newPods},
		{groupContainers, "logs", newLogs},
		{groupContainers, "exec", newExec},
		{groupContainers, "attach", newAttach},
		{groupContainers, "cp", newCp},
		{groupContainers, "port-forward", newPortForward},
		{groupContainers, "create", newCreate},
		{groupContainers, "start", newStart},
		{groupContainers, "stop", newStop},
		{groupContainers, "restart", newRestart},
		{groupContainers, "kill", newKill},
		{groupContainers, "pause", func(a *app) *cobra.Command { return newPause(a, false) }},
		{groupContainers, "unpause", func(a *app) *cobra.Command { return newPause(a, true) }},
		{groupContainers, "wait", newWait},
		{groupContainers, "rename", newRename},
		{groupContainers, "update", newUpdate},
		{groupContainers, "rm", newRm},
		{groupContainers, "stats", newStats},
		{groupContainers, "top", newTop},
		{groupContainers, "inspect", newInspect},
		{groupContainers, "diff", newDiff},
		{groupContainers, "commit", newCommit},
		{groupContainers, "events", newEvents},
		{groupContainers, "network", newNetwork},
		{groupImages, "pull", newPull},
		{groupImages, "push", newPush},
		{groupImages, "images", newImages},
		{groupImages, "rmi", newRmi},
		{groupImages, "tag", newTag},
		{groupImages, "load", newLoad},
		{groupImages, "save", newSave},
		{groupImages, "history", newHistory},
		{groupImages, "image", newImage},
		{groupImages, "login", newLogin},
		{groupImages, "logout", newLogout},
		{groupData, "volume", newVolume},
		{groupData, "secret", newSecret},
		{"", "container", newContainerNoun},
		{"", "pod", newPodNoun},
		{"", "kube", newKubeNoun},
		{"", "port", newPort},
	}
}
