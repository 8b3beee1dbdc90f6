package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// newNouns returns the commands that Podman and Docker have below a noun, and those that
// are refused with the reason. They are the same as others, or none, so the help leaves
// them out.
func newNouns(a *app) []*cobra.Command {
	named := func(cmd *cobra.Command, use string, aliases ...string) *cobra.Command {
		_, rest, _ := strings.Cut(cmd.Use, " ")
		cmd.Use, cmd.Aliases = strings.TrimSpace(use+" "+rest), aliases
		return cmd
	}
	container := noun("container", "The commands for containers, as \"podman container\" has them",
		named(newPs(a), "ls", "list", "ps"), newRun(a), newCreate(a), newStart(a), newStop(a), newRestart(a), newKill(a), newPause(a, false),
		newPause(a, true), newWait(a), newRename(a), named(newRm(a), "rm", "remove"), newLogs(a), newExec(a), newAttach(a), newCp(a), newStats(a), newTop(a),
		newInspectOf(a, "container"), newDiff(a), newCommit(a), newPort(a), newUpdate(a), newExists(a))
	pod := noun("pod", "The commands for pods, as \"podman pod\" has them",
		named(newPods(a), "ps", "ls", "list"), newStart(a), newStop(a), newRestart(a), newPause(a, false), newPause(a, true), newRm(a), newLogs(a),
		newStats(a), newTop(a), newInspectOf(a, "pod"),
		newRefusedCommand("create", notYet+"\"run --pod new:NAME\" makes one with its first container, and \"play\" those of a manifest"))
	play := newPlay(a)
	play.Use = "play [flags] FILE..."
	kube := noun("kube", "The commands for manifests, as \"podman kube\" has them", play, newPlayDown(a),
		newRefusedCommand("generate", "pods are made from manifests, not manifests from pods"), newRefusedCommand("apply", "use kubectl"))
	nouns := []*cobra.Command{container, pod, kube, newPort(a)}
	for name, reason := range refusedCommands {
		nouns = append(nouns, newRefusedCommand(name, reason))
	}
	return nouns
}

func noun(name, short string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: name, Short: short, Args: none(), Hidden: true, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	for _, c := range commands {
		if c.Args != nil {
			c.Args = usageArgs(c.Args)
		}
		addRefused(c.Flags(), refusedOf[c.Name()])
		cmd.AddCommand(c)
	}
	return cmd
}

// refusedCommands are commands of Podman and Docker that there are not, and why.
var refusedCommands = map[string]string{
	"build":       "images are not built here; build them with Buildah or Podman, whose images \"subpod load\" takes, and an additional store shows (see docs/storage.md)",
	"auto-update": "pull the image and \"run --replace\" the container",
	"checkpoint":  "it needs root on the host (CRIU)",
	"restore":     "it needs root on the host (CRIU)",
	"export":      "use \"subpod cp CONTAINER:/ -\", or \"subpod commit\" and \"save\"",
	"import":      "only images are loaded (\"subpod load\"); make one of a root file system with Buildah",
	"generate":    "a restart policy does what generated units did; pods are described by manifests (\"subpod play\")",
	"healthcheck": "the server runs health checks; \"subpod inspect\" shows the last one",
	"machine":     "subpod runs on this machine",
	"mount":       "root file systems are mounted in the node alone: \"subpod unshare\" and \"subpod nsenter\" enter it, \"subpod cp\" copies",
	"search":      "registries are asked for images by name alone; search on the registry's site",
	"unmount":     "root file systems are mounted in the node alone",
	"compose":     "describe pods in a manifest (\"subpod play\")",
	"manifest":    "lists of images are made with Buildah or Podman",
	"trust":       "what is trusted is in policy.json",
}

// newRefusedCommand is a command that says why it is none.
func newRefusedCommand(name, reason string) *cobra.Command {
	return &cobra.Command{
		Use: name, Short: "Not supported: " + reason, Hidden: true, DisableFlagParsing: true,
		RunE: func(*cobra.Command, []string) error { return usagef("%s is refused: %s", name, reason) },
	}
}

func newPlayDown(a *app) *cobra.Command {
	cmd := newPlay(a)
	cmd.Use, cmd.Short, cmd.Long, cmd.Example = "down [flags] FILE...", "Stop and remove the pods of manifests", "", "  subpod kube down pod.yaml"
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := cmd.Flags().Set("down", "true"); err != nil {
			return err
		}
		return run(cmd, args)
	}
	return cmd
}

func newExists(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "exists CONTAINER",
		Short:   "Exit with 0 if there is the container, with 1 if not",
		Example: "  subpod container exists web || subpod run -d --name web nginx",
		Args:    exactly(1),
		RunE: a.run(func(cmd *cobra.Command, conn *connection, args []string) error {
			_, err := conn.Container(cmd.Context(), args[0])
			if exitCode(err) == exitNotFound {
				return exitStatus(exitError)
			}
			return err
		}),
		ValidArgsFunction: a.completeBoth,
	}
}

func newPort(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "port CONTAINER [PORT[/PROTOCOL]]",
		Short:   "Show the ports of the host that lead to a container",
		Example: "  subpod port web\n  subpod port web 80/tcp",
		Args:    between(1, 2),
		Hidden:  true,
		RunE: a.run(func(cmd *cobra.Command, conn *connection, args []string) error {
			x, err := conn.Container(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			config, err := podConfig(cmd.Context(), conn.Client, x.PodSandboxId)
			if err != nil {
				return err
			}
			found := false
			for _, m := range config.PortMappings {
				port := fmt.Sprintf("%d/%s", m.ContainerPort, strings.ToLower(runtimeapi.Protocol(m.Protocol).String()))
				if m.HostPort == 0 || len(args) == 2 && port != args[1] && port != args[1]+"/tcp" {
					continue
				}
				found = true
				ip := m.HostIP
				if ip == "" {
					ip = "0.0.0.0"
				} else if strings.Contains(ip, ":") {
					ip = "[" + ip + "]"
				}
				if len(args) == 2 {
					fmt.Fprintf(cmd.OutOrStdout(), "%s:%d\n", ip, m.HostPort)
				} else {
					fmt.Fprintf(cmd.OutOrStdout(), "%s -> %s:%d\n", port, ip, m.HostPort)
				}
			}
			if len(args) == 2 && !found {
				return fmt.Errorf("no port of the host leads to port %s of container %s", args[1], x.Name())
			}
			return nil
		}),
		ValidArgsFunction: a.completeBoth,
	}
}
