package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The commands that Podman and Docker have below a noun, and those that are refused with
// the reason, are the same as others, or none, so the help leaves them out.

// renamed gives a command another name.
func renamed(cmd *cobra.Command, use string, aliases ...string) *cobra.Command {
	_, rest, _ := strings.Cut(cmd.Use, " ")
	cmd.Use, cmd.Aliases = strings.TrimSpace(use+" "+rest), aliases
	return cmd
}

func newContainerNoun(a *app) *cobra.Command {
	container := noun("container", "The commands for containers, as \"podman container\" has them",
		renamed(newPs(a), "ls", "list", "ps"), newRun(a), newCreate(a), newStart(a), newStop(a), newRestart(a), newKill(a), newPause(a, false),
		newPause(a, true), newWait(a), newRename(a), renamed(newRm(a), "rm", "remove"), newLogs(a), newExec(a), newAttach(a), newCp(a), newStats(a), newTop(a),
		newInspectOf(a, "container"), newDiff(a), newCommit(a), newPort(a), newUpdate(a), newExists(a), newContainerPrune(a))
	refuse(container, "checkpoint", "cleanup", "clone", "export", "init", "mount", "restore", "runlabel", "unmount")
	return container
}

func newPodNoun(a *app) *cobra.Command {
	pod := noun("pod", "The commands for pods, as \"podman pod\" has them",
		renamed(newPods(a), "ps", "ls", "list"), newStart(a), newStop(a), newRestart(a), newPause(a, false), newPause(a, true), newRm(a), newLogs(a),
		newStats(a), newTop(a), newInspectOf(a, "pod"), newKill(a), newContainerPrune(a), newPodExists(a),
		newRefusedCommand("create", notYet+"\"run --pod new:NAME\" makes one with its first container, and \"play\" those of a manifest"))
	refuse(pod, "clone")
	return pod
}

func newKubeNoun(a *app) *cobra.Command {
	play := newPlay(a)
	play.Use = "play [flags] FILE..."
	return noun("kube", "The commands for manifests, as \"podman kube\" has them", play, newPlayDown(a),
		newRefusedCommand("generate", "pods are made from manifests, not manifests from pods"), newRefusedCommand("apply", "use kubectl"))
}

// refusedTop returns the commands of Podman and Docker that there are not.
func refusedTop() []*cobra.Command {
	var list []*cobra.Command
	for name, reason := range refusedCommands {
		list = append(list, newRefusedCommand(name, reason))
	}
	return list
}

// refuse adds commands that are refused below a noun, too.
func refuse(noun *cobra.Command, names ...string) {
	for _, name := range names {
		reason, ok := refusedBelow[noun.Name()][name]
		if !ok {
			reason = refusedCommands[name]
		}
		noun.AddCommand(newRefusedCommand(name, reason))
	}
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
	"apparmor":    "profiles are the host's, and need root",
	"artifact":    "only images are kept",
	"builder":     "images are not built here; Buildah and Podman have caches of builds",
	"buildx":      "images are not built here; build them with Buildah or Podman, whose images \"subpod load\" takes",
	"cleanup":     "the server cleans up what has ended",
	"clone":       notYet + "\"subpod commit\" makes an image of a container, which \"run\" runs",
	"config":      "there is no swarm; \"play\" reads ConfigMaps of a manifest",
	"context":     "the daemon is the user's own; --run names the directory of another one",
	"farm":        "images are not built here",
	"init":        notYet + "\"create\" has made all that \"start\" does not",
	"ipfs":        "images come from registries",
	"namespace":   "objects of \"play\" are in the namespaces of their manifests (see \"subpod pods\")",
	"node":        "there is no swarm; \"subpod kubernetes\" makes this machine a node of a cluster",
	"plugin":      "there are no plugins; CNI plugins are chosen by the configuration (network.backend)",
	"quadlet":     "a restart policy does what units did; pods are described by manifests (\"subpod play\")",
	"runlabel":    "commands that an image brings are not run",
	"service":     "there is no swarm; \"subpod play\" reads Services of a manifest",
	"stack":       "there is no swarm; describe pods in a manifest (\"subpod play\")",
	"swarm":       "there is no swarm; \"subpod kubernetes\" makes this machine a node of a cluster",
	"untag":       "\"subpod rmi NAME\" removes a name; the image goes with its last one",
}

// refusedBelow are the reasons that a command below a noun has of its own.
var refusedBelow = map[string]map[string]string{
	"image": {
		"diff": notYet + "\"subpod diff\" shows what a container has changed of its image",
		"scp":  "use \"subpod save\", ssh(1) and \"subpod load\"", "sign": "images are not signed by this command; use skopeo",
		"tree": notYet + "\"subpod history\" shows the steps of an image", "mount": "run a container of it: \"subpod cp\" copies, \"run --mount type=image\" shows it to another one",
		"unmount": "images are not mounted", "trust": "what is trusted is in policy.json",
	},
	"system": {
		"connection": "the daemon is the user's own; --run names the directory of another one", "df": notYet + "\"subpod images\", \"stats\" and \"info\" show sizes and numbers",
		"migrate": "a newer server reads an older one's records", "renumber": "there are no lock numbers", "service": "\"subpod daemon\" is the service: of the CRI, not of Docker's API",
	},
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
	cmd := &cobra.Command{
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
	addRefused(cmd.Flags(), refused{"external": "only containers of this runtime are known"})
	return cmd
}

func newPodExists(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "exists POD",
		Short:   "Exit with 0 if there is the pod, with 1 if not",
		Example: "  subpod pod exists web || subpod play -d web.yaml",
		Args:    exactly(1),
		RunE: a.run(func(cmd *cobra.Command, conn *connection, args []string) error {
			_, err := conn.Pod(cmd.Context(), args[0])
			if exitCode(err) == exitNotFound {
				return exitStatus(exitError)
			}
			return err
		}),
		ValidArgsFunction: a.completePods,
	}
}

// newContainerPrune is "container prune", and "pod prune": what "run" has made is a pod.
func newContainerPrune(a *app) *cobra.Command {
	var force bool
	s := &selection{}
	cmd := &cobra.Command{
		Use:     "prune [flags]",
		Short:   "Remove the pods that neither run nor are restarted, with their containers",
		Example: "  subpod container prune --force\n  subpod container prune -f --filter until=24h",
		Args:    none(),
		RunE: a.run(func(cmd *cobra.Command, conn *connection, _ []string) error {
			if err := confirm(cmd, force, "Remove all pods that neither run nor are restarted?"); err != nil {
				return err
			}
			pods, err := removable(cmd.Context(), conn.Client, false)
			if err == nil && len(s.filters) > 0 {
				pods, err = s.pods(cmd.Context(), conn.Client, pods)
			}
			if err != nil {
				return err
			}
			return each(pods, func(id string) error {
				err := remove(cmd.Context(), conn, id, false)
				if err == nil {
					fmt.Fprintln(cmd.OutOrStdout(), id)
				}
				return err
			})
		}),
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "do not ask for confirmation")
	s.addFilter(cmd.Flags(), "")
	return cmd
}

func newPort(a *app) *cobra.Command {
	cmd := &cobra.Command{
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
	addRefused(cmd.Flags(), refused{"all/a": notYet + "\"subpod ps\" shows the ports of all containers"})
	return a.withLatest(cmd, true)
}
