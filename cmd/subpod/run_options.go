package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/client"
	"github.com/subpod/subpod/pkg/config"
	"github.com/subpod/subpod/pkg/workload"
)

// runOptions are the flags of "run".
type runOptions struct {
	interactive, tty, detach, remove, quiet, ephemeral bool
	readOnly, privileged                               bool
	name, user, memory, workdir, entrypoint            string
	hostname, pull, handler                            string
	cpus                                               float64
	ports, volumes, env, envFiles, labels              []string
	capAdd, capDrop, security                          []string
	entrypointSet                                      bool
	moreOptions
	networkOptions
	restart string
	create  bool // "subpod create"
	// forwards is set once the container gets this command's signals.
	forwards atomic.Bool
}

func (o *runOptions) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.SetInterspersed(false)
	f.BoolVarP(&o.interactive, "interactive", "i", false, "keep standard input open and forward it")
	f.BoolVarP(&o.tty, "tty", "t", false, "allocate a terminal")
	f.BoolVarP(&o.detach, "detach", "d", false, "run in the background and print the container ID")
	f.BoolVar(&o.remove, "rm", false, "remove the pod once the container has exited")
	f.StringVar(&o.restart, "restart", "no", "when to restart an exited container: no, on-failure[:MAX], unless-stopped or always")
	f.StringVar(&o.name, "name", "", "name of the pod and its container (default: generated)")
	f.StringSliceVarP(&o.ports, "publish", "p", nil, "[[HOST_IP:]HOST_PORT:]CONTAINER_PORT[/udp], also ranges (may be repeated)")
	f.StringArrayVarP(&o.volumes, "volume", "v", nil, "HOST_PATH:PATH[:OPTIONS] or VOLUME:PATH[:OPTIONS] (ro, noexec, nocopy, rslave, rshared …; may be repeated)")
	f.StringArrayVarP(&o.env, "env", "e", nil, "NAME=VALUE, or NAME to copy the variable from the environment")
	f.StringArrayVar(&o.envFiles, "env-file", nil, "file with NAME=VALUE lines")
	f.StringVarP(&o.user, "user", "u", "", "UID or user name, optionally with :GID or :group")
	f.StringVarP(&o.memory, "memory", "m", "", "memory limit, such as 512m or 2g")
	f.Float64Var(&o.cpus, "cpus", 0, "CPU limit, such as 1.5")
	o.networkOptions.addFlags(f)
	f.StringVarP(&o.hostname, "hostname", "h", "", "host name (default: the name of the pod)")
	f.StringVarP(&o.workdir, "workdir", "w", "", "working directory in the container")
	f.StringVar(&o.entrypoint, "entrypoint", "", "replace the entry point of the image: a program, or a JSON list")
	f.BoolVar(&o.readOnly, "read-only", false, "mount the root file system read-only")
	f.BoolVar(&o.privileged, "privileged", false, "give all capabilities of the node: never those of root on the host")
	f.StringSliceVar(&o.capAdd, "cap-add", nil, "add a capability, or ALL")
	f.StringSliceVar(&o.capDrop, "cap-drop", nil, "drop a capability, or ALL")
	f.StringArrayVar(&o.security, "security-opt", nil, "seccomp=unconfined, seccomp=FILE, no-new-privileges")
	f.StringArrayVarP(&o.labels, "label", "l", nil, "label as NAME=VALUE")
	f.StringVar(&o.pull, "pull", "missing", "when to pull the image: always, newer, missing or never")
	f.StringVar(&o.handler, "runtime", "", "runtime handler (default: the configured default)")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "do not show the progress of the pull")
	f.BoolVar(&o.ephemeral, "ephemeral-node", false, "stop a daemon that this command started when the command exits")
	must(cmd.RegisterFlagCompletionFunc("pull", cobra.FixedCompletions([]string{"always", "missing", "never", "newer"}, cobra.ShellCompDirectiveNoFileComp)))
	must(cmd.RegisterFlagCompletionFunc("network", cobra.FixedCompletions([]string{api.DefaultNetwork, "host", "none"}, cobra.ShellCompDirectiveNoFileComp)))
	o.addMoreFlags(f)
	o.given = f.Changed
	// The word of Docker's for the kind of help that "-h" gives elsewhere.
	f.Bool("help", false, "help for "+cmd.Name())
	cmd.PreRun = func(cmd *cobra.Command, _ []string) { o.entrypointSet = cmd.Flags().Changed("entrypoint") }
}

// isName reports whether s is a valid name of a pod, container or volume.
func isName(s string) bool {
	const marks = "_.-"
	return len(s) <= 63 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"+marks) == "" && strings.TrimLeft(s, marks) == s && s != ""
}

// check validates the flags before anything is started.
func (o *runOptions) check() error {
	if err := o.networkOptions.check(); err != nil {
		return err
	}
	if _, err := workload.ParsePolicy(o.restart); err != nil {
		return usagef("invalid --restart %w", err)
	}
	switch {
	case o.name != "" && !isName(o.name):
		return usagef("invalid --name %q: expected at most 63 letters, digits, '_', '.' and '-', beginning with a letter or digit", o.name)
	case o.pull != "always" && o.pull != "missing" && o.pull != "never" && o.pull != "newer":
		return usagef("invalid --pull %q: expected always, newer, missing or never", o.pull)
	case o.remove && o.restarts():
		return usagef("--rm and --restart %s exclude each other: a container that is removed once it has exited cannot be restarted", o.restart)
	case o.ephemeral && o.restarts():
		return usagef("--restart %s and --ephemeral-node exclude each other: the container is stopped with the node", o.restart)
	case o.pod != "" && (o.restarts() || o.create):
		return usagef("--pod cannot be combined with --restart or \"create\": only a container with a pod of its own can be restarted, or be started later")
	case o.detach && o.ephemeral:
		return usagef("-d and --ephemeral-node exclude each other: the container would be stopped with the node at once")
	case o.network != "pod" && len(o.ports) > 0:
		return usagef("-p cannot be combined with --network %s: only a pod with a network of its own has port mappings", o.network)
	case !validCPUs(o.cpus):
		return invalidCPUs(o.cpus)
	case o.tty && !o.detach && o.interactive && !isTerminal(os.Stdin):
		return usagef("-t: standard input is not a terminal; omit -t to use a pipe")
	}
	if err := o.checkIdentity(); err != nil {
		return err
	}
	return o.checkLife()
}

// restarts reports whether the container is restarted when it has exited.
func (o *runOptions) restarts() bool { return o.restart != "" && o.restart != workload.No }

// warnings prints a warning for limits that cannot be applied on this host.
func (o *runOptions) warnings(ctx context.Context, c *client.Client) error {
	limits := o.limited()
	if len(limits) == 0 {
		return nil
	}
	st, err := c.Status(ctx, &runtimeapi.StatusRequest{})
	if err != nil {
		return err
	}
	for _, cond := range st.Status.Conditions {
		if cond.Type == "ResourceLimits" && !cond.Status {
			warn("%s: no effect: %s", strings.Join(limits, ", "), cond.Message)
		}
	}
	return nil
}

func logsDir(cfg *config.Config) string    { return filepath.Join(cfg.Daemon.DataDir, "logs") }
func volumesDir(cfg *config.Config) string { return filepath.Join(cfg.Daemon.DataDir, "volumes") }

// configs returns the CRI configuration of the pod and the container.
func (o *runOptions) configs(cfg *config.Config, args []string) (*runtimeapi.PodSandboxConfig, *runtimeapi.ContainerConfig, error) {
	runID := randomHex(8)
	pod := &runtimeapi.PodSandboxConfig{
		Metadata:    client.PodMetadata(client.DefaultNamespace, o.name),
		Hostname:    o.hostname,
		Labels:      map[string]string{api.LabelMadeBy: api.MadeByRun},
		Annotations: map[string]string{api.AnnotationWhenDone: api.WhenDoneStop, api.AnnotationRunID: runID},
		Linux:       &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{}},
	}
	ctr := &runtimeapi.ContainerConfig{
		Metadata:    &runtimeapi.ContainerMetadata{Name: o.name},
		Image:       &runtimeapi.ImageSpec{Image: args[0], UserSpecifiedImage: args[0]},
		Args:        args[1:],
		WorkingDir:  o.workdir,
		Labels:      map[string]string{},
		Annotations: map[string]string{},
		Tty:         o.tty, Stdin: o.interactive, StdinOnce: o.interactive && !o.detach && !o.tty,
	}
	if o.hostname == "" {
		pod.Hostname = strings.ReplaceAll(o.name, "_", "-")
	}
	if o.entrypointSet && o.entrypoint != "" {
		ctr.Command = entrypoint(o.entrypoint)
	}
	if o.remove {
		pod.Annotations[api.AnnotationWhenDone] = api.WhenDoneRemove
	}
	if (!o.remove || o.detach) && o.logDriver != "none" {
		// Output that is streamed and then removed needs no log.
		pod.LogDirectory = filepath.Join(logsDir(cfg), o.name+"-"+runID)
		ctr.LogPath = o.name + ".log"
	}
	options := &api.ContainerOptions{}
	for _, fill := range []func() error{
		func() error { return o.fillLabels(ctr) },
		func() error { return o.fillPorts(pod) },
		func() error { return o.networkOptions.fill(pod) },
		func() error { return o.fillEnv(ctr, options) },
		func() error { return o.fillMounts(cfg, ctr, options) },
		func() error { return o.fillSecurity(pod, ctr) },
		func() error { return o.fillLimits(ctr) },
		func() error { return o.fillUlimits(options) },
		func() error { return o.fillSysctls(pod) },
		func() error { return o.fillDevices(ctr) },
		func() error { return o.fillIdentity(pod, ctr, options) },
		func() error { return o.fillSecrets(cfg, ctr, options) },
		func() error { return o.fillLife(pod, ctr, options) },
		func() error { return api.SetOptions(ctr.Annotations, options) },
	} {
		if err := fill(); err != nil {
			return nil, nil, err
		}
	}
	return pod, ctr, nil
}
