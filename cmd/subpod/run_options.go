package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/cmd/internal/kube"
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
	networkOptions
	restart string
	create  bool // "subpod create"
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
	f.StringArrayVarP(&o.ports, "publish", "p", nil, "[[HOST_IP:]HOST_PORT:]CONTAINER_PORT[/udp] (may be repeated)")
	f.StringArrayVarP(&o.volumes, "volume", "v", nil, "HOST_PATH:PATH[:OPTIONS] or VOLUME:PATH[:OPTIONS] (ro, rslave, rshared; may be repeated)")
	f.StringArrayVarP(&o.env, "env", "e", nil, "NAME=VALUE, or NAME to copy the variable from the environment")
	f.StringArrayVar(&o.envFiles, "env-file", nil, "file with NAME=VALUE lines")
	f.StringVarP(&o.user, "user", "u", "", "UID or user name, optionally with :GID or :group")
	f.StringVarP(&o.memory, "memory", "m", "", "memory limit, such as 512m or 2g")
	f.Float64Var(&o.cpus, "cpus", 0, "CPU limit, such as 1.5")
	o.networkOptions.addFlags(f)
	f.StringVar(&o.hostname, "hostname", "", "host name (default: the name of the pod)")
	f.StringVarP(&o.workdir, "workdir", "w", "", "working directory in the container")
	f.StringVar(&o.entrypoint, "entrypoint", "", "replace the entry point of the image")
	f.BoolVar(&o.readOnly, "read-only", false, "mount the root file system read-only")
	f.BoolVar(&o.privileged, "privileged", false, "give all capabilities of the node: never those of root on the host")
	f.StringArrayVar(&o.capAdd, "cap-add", nil, "add a capability, or ALL")
	f.StringArrayVar(&o.capDrop, "cap-drop", nil, "drop a capability, or ALL")
	f.StringArrayVar(&o.security, "security-opt", nil, "seccomp=unconfined, seccomp=FILE, no-new-privileges")
	f.StringArrayVarP(&o.labels, "label", "l", nil, "label as NAME=VALUE")
	f.StringVar(&o.pull, "pull", "missing", "when to pull the image: always, missing or never")
	f.StringVar(&o.handler, "runtime", "", "runtime handler (default: the configured default)")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "do not show the progress of the pull")
	f.BoolVar(&o.ephemeral, "ephemeral-node", false, "stop a daemon that this command started when the command exits")
	must(cmd.RegisterFlagCompletionFunc("pull", cobra.FixedCompletions([]string{"always", "missing", "never"}, cobra.ShellCompDirectiveNoFileComp)))
	must(cmd.RegisterFlagCompletionFunc("network", cobra.FixedCompletions([]string{api.DefaultNetwork, "host", "none"}, cobra.ShellCompDirectiveNoFileComp)))
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
	case o.pull != "always" && o.pull != "missing" && o.pull != "never":
		return usagef("invalid --pull %q: expected always, missing or never", o.pull)
	case o.remove && o.restarts():
		return usagef("--rm and --restart %s exclude each other: a container that is removed once it has exited cannot be restarted", o.restart)
	case o.ephemeral && o.restarts():
		return usagef("--restart %s and --ephemeral-node exclude each other: the container is stopped with the node", o.restart)
	case o.detach && o.ephemeral:
		return usagef("-d and --ephemeral-node exclude each other: the container would be stopped with the node at once")
	case o.network != "pod" && len(o.ports) > 0:
		return usagef("-p cannot be combined with --network %s: only a pod with a network of its own has port mappings", o.network)
	case o.cpus < 0:
		return usagef("invalid --cpus %v: it must not be negative", o.cpus)
	case o.tty && !o.detach && o.interactive && !isTerminal(os.Stdin):
		return usagef("-t: standard input is not a terminal; omit -t to use a pipe")
	}
	return nil
}

// restarts reports whether the container is restarted when it has exited.
func (o *runOptions) restarts() bool { return o.restart != "" && o.restart != workload.No }

// warnings prints a warning for limits that cannot be applied on this host.
func (o *runOptions) warnings(ctx context.Context, c *client.Client) error {
	if o.memory == "" && o.cpus == 0 {
		return nil
	}
	st, err := c.Status(ctx, &runtimeapi.StatusRequest{})
	if err != nil {
		return err
	}
	for _, cond := range st.Status.Conditions {
		if cond.Type == "ResourceLimits" && !cond.Status {
			warn("--memory and --cpus have no effect: %s", cond.Message)
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
		ctr.Command = []string{o.entrypoint}
	}
	if o.remove {
		pod.Annotations[api.AnnotationWhenDone] = api.WhenDoneRemove
	}
	if !o.remove || o.detach {
		// Output that is streamed and then removed needs no log.
		pod.LogDirectory = filepath.Join(logsDir(cfg), o.name+"-"+runID)
		ctr.LogPath = o.name + ".log"
	}
	for _, fill := range []func() error{
		func() error { return o.fillLabels(ctr) },
		func() error { return o.fillPorts(pod) },
		func() error { return o.networkOptions.fill(pod) },
		func() error { return o.fillEnv(ctr) },
		func() error { return o.fillMounts(cfg, ctr) },
		func() error { return o.fillSecurity(pod, ctr) },
		func() error { return o.fillLimits(ctr) },
	} {
		if err := fill(); err != nil {
			return nil, nil, err
		}
	}
	return pod, ctr, nil
}

func (o *runOptions) fillLabels(ctr *runtimeapi.ContainerConfig) error {
	for _, l := range o.labels {
		name, value, _ := strings.Cut(l, "=")
		if name == "" {
			return usagef("invalid -l %q: expected NAME=VALUE", l)
		}
		ctr.Labels[name] = value
	}
	return nil
}

func (o *runOptions) fillPorts(pod *runtimeapi.PodSandboxConfig) error {
	for _, p := range o.ports {
		m, err := parsePort(p)
		if err != nil {
			return err
		}
		pod.PortMappings = append(pod.PortMappings, m)
	}
	return nil
}

// parsePort parses [[HOST_IP:]HOST_PORT:]CONTAINER_PORT[/PROTOCOL].
func parsePort(s string) (*runtimeapi.PortMapping, error) {
	bad := func(why string) error {
		return usagef("invalid -p %q: %s; expected [[HOST_IP:]HOST_PORT:]CONTAINER_PORT[/udp]", s, why)
	}
	m := &runtimeapi.PortMapping{}
	rest, proto, _ := strings.Cut(s, "/")
	switch proto {
	case "", "tcp":
	case "udp":
		m.Protocol = runtimeapi.Protocol_UDP
	default:
		return nil, bad("the protocol must be tcp or udp")
	}
	var host string
	if i := strings.LastIndexByte(rest, ':'); i >= 0 {
		host, rest = rest[:i], rest[i+1:]
	}
	if i := strings.LastIndexByte(host, ':'); i >= 0 {
		m.HostIp, host = strings.Trim(host[:i], "[]"), host[i+1:]
		if net.ParseIP(m.HostIp) == nil {
			return nil, bad(fmt.Sprintf("%q is not an IP address", m.HostIp))
		}
	}
	port, err := strconv.ParseUint(rest, 10, 16)
	if err != nil || port == 0 {
		return nil, bad(fmt.Sprintf("%q is not a port", rest))
	}
	m.ContainerPort = int32(port)
	if host == "" {
		free, err := freePort(m.Protocol)
		m.HostPort = free
		return m, err
	}
	if port, err = strconv.ParseUint(host, 10, 16); err != nil || port == 0 {
		return nil, bad(fmt.Sprintf("%q is not a port", host))
	}
	m.HostPort = int32(port)
	return m, nil
}

// freePort returns a host port that is not in use.
func freePort(proto runtimeapi.Protocol) (int32, error) {
	if proto == runtimeapi.Protocol_UDP {
		c, err := net.ListenPacket("udp", ":0")
		if err != nil {
			return 0, fmt.Errorf("find a free port: %w", err)
		}
		defer c.Close()
		return int32(c.LocalAddr().(*net.UDPAddr).Port), nil
	}
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close()
	return int32(l.Addr().(*net.TCPAddr).Port), nil
}

func (o *runOptions) fillEnv(ctr *runtimeapi.ContainerConfig) error {
	add := func(line, where string) error {
		name, value, given := strings.Cut(line, "=")
		if name == "" || strings.ContainsAny(name, " \t") {
			return usagef("invalid %s: expected NAME=VALUE, with a NAME without white space", where) // the line may be a secret
		}
		if !given {
			if value, given = os.LookupEnv(name); !given {
				return nil
			}
		}
		ctr.Envs = append(ctr.Envs, &runtimeapi.KeyValue{Key: name, Value: []byte(value)})
		return nil
	}
	if o.tty {
		if term := os.Getenv("TERM"); term != "" {
			ctr.Envs = append(ctr.Envs, &runtimeapi.KeyValue{Key: "TERM", Value: []byte(term)})
		}
	}
	for _, name := range o.envFiles {
		f, err := os.Open(name)
		if err != nil {
			return fmt.Errorf("--env-file: %w", err)
		}
		lines := bufio.NewScanner(f)
		for number := 1; lines.Scan(); number++ {
			if line := strings.TrimSpace(lines.Text()); line != "" && !strings.HasPrefix(line, "#") && err == nil {
				err = add(line, fmt.Sprintf("--env-file %s, line %d", name, number))
			}
		}
		f.Close()
		if err != nil {
			return err
		}
		if err := lines.Err(); err != nil {
			return fmt.Errorf("--env-file %s: %w", name, err)
		}
	}
	for _, e := range o.env {
		if err := add(e, "-e"); err != nil {
			return err
		}
	}
	return nil
}

func (o *runOptions) fillMounts(cfg *config.Config, ctr *runtimeapi.ContainerConfig) error {
	for _, v := range o.volumes {
		m, err := parseVolume(v, volumesDir(cfg))
		if err != nil {
			return err
		}
		ctr.Mounts = append(ctr.Mounts, m)
	}
	return nil
}

// parseVolume parses SOURCE:PATH[:OPTIONS]. A source that is not a path is the name
// of a volume below dir, which is created if it does not exist.
func parseVolume(s, dir string) (*runtimeapi.Mount, error) {
	parts := strings.Split(s, ":")
	if len(parts) < 2 || len(parts) > 3 || parts[0] == "" || !filepath.IsAbs(parts[1]) {
		return nil, usagef("invalid -v %q: expected HOST_PATH:PATH[:OPTIONS] or VOLUME:PATH[:OPTIONS] with PATH absolute", s)
	}
	m := &runtimeapi.Mount{HostPath: parts[0], ContainerPath: parts[1]}
	switch {
	case strings.ContainsRune(m.HostPath, '/') || m.HostPath == "." || m.HostPath == "..":
		abs, err := filepath.Abs(m.HostPath)
		if err != nil {
			return nil, fmt.Errorf("-v %s: %w", s, err)
		}
		m.HostPath = abs
		if _, err := os.Stat(abs); err != nil {
			return nil, fmt.Errorf("-v %s: %w", s, err)
		}
	case !isName(m.HostPath):
		return nil, usagef("invalid -v %q: %q is neither a path nor a valid name of a volume", s, m.HostPath)
	default:
		m.HostPath = filepath.Join(dir, m.HostPath)
		if err := os.MkdirAll(m.HostPath, 0o755); err != nil {
			return nil, fmt.Errorf("create the volume: %w", err)
		}
	}
	if len(parts) == 2 {
		return m, nil
	}
	for option := range strings.SplitSeq(parts[2], ",") {
		switch option {
		case "rw", "private", "rprivate", "z", "Z", "":
		case "ro":
			m.Readonly = true
		case "slave", "rslave":
			m.Propagation = runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
		case "shared", "rshared":
			m.Propagation = runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
		default:
			return nil, usagef("invalid -v %q: unknown option %q; expected ro, rw, rslave or rshared", s, option)
		}
	}
	return m, nil
}

func (o *runOptions) fillLimits(ctr *runtimeapi.ContainerConfig) error {
	res := &runtimeapi.LinuxContainerResources{}
	if o.memory != "" {
		n, err := kube.ParseBytes(o.memory)
		if err != nil || n <= 0 {
			return usagef("invalid -m %q: expected a number of bytes such as 512m or 2g", o.memory)
		}
		res.MemoryLimitInBytes = n
	}
	if o.cpus > 0 {
		res.CpuPeriod = 100_000
		res.CpuQuota = max(int64(o.cpus*100_000), 1000) // the minimum of the kernel
	}
	ctr.Linux.Resources = res
	return nil
}
