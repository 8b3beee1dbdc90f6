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
	"github.com/subpod/subpod/pkg/client"
	"github.com/subpod/subpod/pkg/config"
	"github.com/subpod/subpod/pkg/labels"
)

// runOptions are the flags of "run".
type runOptions struct {
	interactive, tty, detach, remove, quiet, ephemeral bool
	readOnly, privileged                               bool
	name, user, memory, network, workdir, entrypoint   string
	hostname, pull, handler                            string
	cpus                                               float64
	ports, volumes, env, envFiles, labels              []string
	capAdd, capDrop, security, dns                     []string
	entrypointSet                                      bool
}

func (o *runOptions) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.SetInterspersed(false)
	f.BoolVarP(&o.interactive, "interactive", "i", false, "pass standard input on")
	f.BoolVarP(&o.tty, "tty", "t", false, "give the command a terminal")
	f.BoolVarP(&o.detach, "detach", "d", false, "leave it in the background and print its ID")
	f.BoolVar(&o.remove, "rm", false, "remove it once it has ended")
	f.StringVar(&o.name, "name", "", "name of the pod and its container (default: made up)")
	f.StringArrayVarP(&o.ports, "publish", "p", nil, "[[HOST_IP:]HOST_PORT:]CONTAINER_PORT[/udp], any number of times")
	f.StringArrayVarP(&o.volumes, "volume", "v", nil, "HOST_PATH:PATH[:OPTIONS] or VOLUME:PATH[:OPTIONS] (ro, rslave, rshared), any number of times")
	f.StringArrayVarP(&o.env, "env", "e", nil, "NAME=VALUE, or NAME for the value that it has here")
	f.StringArrayVar(&o.envFiles, "env-file", nil, "file with lines of NAME=VALUE")
	f.StringVarP(&o.user, "user", "u", "", "UID or user name, with :GID or :group if need be")
	f.StringVarP(&o.memory, "memory", "m", "", "limit, such as 512m or 2g")
	f.Float64Var(&o.cpus, "cpus", 0, "limit, such as 1.5")
	f.StringVar(&o.network, "network", "pod", "pod (an address of its own), host (the node's network) or none")
	f.StringArrayVar(&o.dns, "dns", nil, "DNS server")
	f.StringVar(&o.hostname, "hostname", "", "host name (default: the name)")
	f.StringVarP(&o.workdir, "workdir", "w", "", "working directory in the container")
	f.StringVar(&o.entrypoint, "entrypoint", "", "run this instead of the image's entry point")
	f.BoolVar(&o.readOnly, "read-only", false, "the root file system cannot be written to")
	f.BoolVar(&o.privileged, "privileged", false, "all that the node may do: still not the host's root")
	f.StringArrayVar(&o.capAdd, "cap-add", nil, "capability to add, or ALL")
	f.StringArrayVar(&o.capDrop, "cap-drop", nil, "capability to drop, or ALL")
	f.StringArrayVar(&o.security, "security-opt", nil, "seccomp=unconfined, seccomp=FILE, no-new-privileges")
	f.StringArrayVarP(&o.labels, "label", "l", nil, "NAME=VALUE")
	f.StringVar(&o.pull, "pull", "missing", "always, missing or never")
	f.StringVar(&o.handler, "runtime", "", "runtime handler (default: the configured one)")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "do not show the progress of a pull")
	f.BoolVar(&o.ephemeral, "ephemeral-node", false, "a daemon that had to be started ends with the command")
	must(cmd.RegisterFlagCompletionFunc("pull", cobra.FixedCompletions([]string{"always", "missing", "never"}, cobra.ShellCompDirectiveNoFileComp)))
	must(cmd.RegisterFlagCompletionFunc("network", cobra.FixedCompletions([]string{"pod", "host", "none"}, cobra.ShellCompDirectiveNoFileComp)))
	cmd.PreRun = func(cmd *cobra.Command, _ []string) { o.entrypointSet = cmd.Flags().Changed("entrypoint") }
}

// isName: what pods, containers and volumes may be called.
func isName(s string) bool {
	const marks = "_.-"
	return len(s) <= 63 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"+marks) == "" && strings.TrimLeft(s, marks) == s && s != ""
}

// check finds what is wrong before anything is started.
func (o *runOptions) check() error {
	switch {
	case o.name != "" && !isName(o.name):
		return usagef("--name %q: letters, digits, '_', '.' and '-' only, 63 at most", o.name)
	case o.pull != "always" && o.pull != "missing" && o.pull != "never":
		return usagef("--pull %s: always, missing or never", o.pull)
	case o.network != "pod" && o.network != "host" && o.network != "none":
		return usagef("--network %s: pod, host or none", o.network)
	case o.detach && o.ephemeral:
		return usagef("-d and --ephemeral-node: the container would end with its node at once")
	case o.network != "pod" && len(o.ports) > 0:
		return usagef("-p needs a network of the pod's own, not --network %s", o.network)
	case o.cpus < 0:
		return usagef("--cpus %v is less than nothing", o.cpus)
	case o.tty && !o.detach && o.interactive && !isTerminal(os.Stdin):
		return usagef("-t: the standard input is not a terminal (for a pipe, leave -t out)")
	}
	return nil
}

// warnings tells which limits cannot be kept here.
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

// configs turns the flags into what the CRI asks for.
func (o *runOptions) configs(cfg *config.Config, args []string) (*runtimeapi.PodSandboxConfig, *runtimeapi.ContainerConfig, error) {
	runID := randomHex(8)
	pod := &runtimeapi.PodSandboxConfig{
		Metadata:    client.PodMetadata(client.DefaultNamespace, o.name),
		Hostname:    o.hostname,
		Labels:      map[string]string{labels.MadeBy: labels.Run},
		Annotations: map[string]string{labels.WhenDone: labels.Stop, labels.RunID: runID},
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
		pod.Annotations[labels.WhenDone] = labels.Remove
	}
	if !o.remove || o.detach {
		// What is streamed and then removed needs no log.
		pod.LogDirectory = filepath.Join(logsDir(cfg), o.name+"-"+runID)
		ctr.LogPath = o.name + ".log"
	}
	if len(o.dns) > 0 {
		pod.DnsConfig = &runtimeapi.DNSConfig{Servers: o.dns}
	}
	for _, fill := range []func() error{
		func() error { return o.fillLabels(ctr) },
		func() error { return o.fillPorts(pod) },
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
			return usagef("-l %q: NAME=VALUE is wanted", l)
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

// parsePort reads [[HOST_IP:]HOST_PORT:]CONTAINER_PORT[/PROTOCOL].
func parsePort(s string) (*runtimeapi.PortMapping, error) {
	bad := func(why string) error {
		return usagef("-p %s: %s; [[HOST_IP:]HOST_PORT:]CONTAINER_PORT[/udp] is wanted", s, why)
	}
	m := &runtimeapi.PortMapping{}
	rest, proto, _ := strings.Cut(s, "/")
	switch proto {
	case "", "tcp":
	case "udp":
		m.Protocol = runtimeapi.Protocol_UDP
	default:
		return nil, bad("the protocols are tcp and udp")
	}
	var host string
	if i := strings.LastIndexByte(rest, ':'); i >= 0 {
		host, rest = rest[:i], rest[i+1:]
	}
	if i := strings.LastIndexByte(host, ':'); i >= 0 {
		m.HostIp, host = strings.Trim(host[:i], "[]"), host[i+1:]
		if net.ParseIP(m.HostIp) == nil {
			return nil, bad(m.HostIp + " is no address")
		}
	}
	port, err := strconv.ParseUint(rest, 10, 16)
	if err != nil || port == 0 {
		return nil, bad(fmt.Sprintf("%q is no port", rest))
	}
	m.ContainerPort = int32(port)
	if host == "" {
		free, err := freePort(m.Protocol)
		m.HostPort = free
		return m, err
	}
	if port, err = strconv.ParseUint(host, 10, 16); err != nil || port == 0 {
		return nil, bad(fmt.Sprintf("%q is no port", host))
	}
	m.HostPort = int32(port)
	return m, nil
}

// freePort finds a host port that nobody listens on.
func freePort(proto runtimeapi.Protocol) (int32, error) {
	if proto == runtimeapi.Protocol_UDP {
		c, err := net.ListenPacket("udp", ":0")
		if err != nil {
			return 0, fmt.Errorf("look for a free port: %w", err)
		}
		defer c.Close()
		return int32(c.LocalAddr().(*net.UDPAddr).Port), nil
	}
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		return 0, fmt.Errorf("look for a free port: %w", err)
	}
	defer l.Close()
	return int32(l.Addr().(*net.TCPAddr).Port), nil
}

func (o *runOptions) fillEnv(ctr *runtimeapi.ContainerConfig) error {
	add := func(line, where string) error {
		name, value, given := strings.Cut(line, "=")
		if name == "" || strings.ContainsAny(name, " \t") {
			return usagef("%s %q: NAME=VALUE is wanted", where, line)
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
		for lines.Scan() {
			if line := strings.TrimSpace(lines.Text()); line != "" && !strings.HasPrefix(line, "#") && err == nil {
				err = add(line, "--env-file "+name+":")
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

// parseVolume reads SOURCE:PATH[:OPTIONS]; a source that is no path is the name
// of a volume below dir, made when it is not there.
func parseVolume(s, dir string) (*runtimeapi.Mount, error) {
	parts := strings.Split(s, ":")
	if len(parts) < 2 || len(parts) > 3 || parts[0] == "" || !filepath.IsAbs(parts[1]) {
		return nil, usagef("-v %s: HOST_PATH:PATH[:OPTIONS] or VOLUME:PATH[:OPTIONS] is wanted, PATH absolute", s)
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
		return nil, usagef("-v %s: %q is neither a path nor the name of a volume", s, m.HostPath)
	default:
		m.HostPath = filepath.Join(dir, m.HostPath)
		if err := os.MkdirAll(m.HostPath, 0o755); err != nil {
			return nil, fmt.Errorf("make the volume: %w", err)
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
			return nil, usagef("-v %s: unknown option %q", s, option)
		}
	}
	return m, nil
}

func (o *runOptions) fillLimits(ctr *runtimeapi.ContainerConfig) error {
	res := &runtimeapi.LinuxContainerResources{}
	if o.memory != "" {
		n, err := kube.ParseBytes(o.memory)
		if err != nil || n <= 0 {
			return usagef("-m %s: a number of bytes is wanted, such as 512m or 2g", o.memory)
		}
		res.MemoryLimitInBytes = n
	}
	if o.cpus > 0 {
		res.CpuPeriod = 100_000
		res.CpuQuota = max(int64(o.cpus*100_000), 1000) // the kernel's least
	}
	ctr.Linux.Resources = res
	return nil
}
