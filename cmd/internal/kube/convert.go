package kube

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"sync"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/client"
)

// Place contains the absolute paths of the files of a pod on the host.
type Place struct {
	UID     string // random: the pod's metadata.uid
	Logs    string // log directory of the pod
	Volumes string // named volumes (of claims)
	Disk    string // files of the pod on disk: emptyDir
	Memory  string // files of the pod that containers cannot write: configMap, secret
	Tmpfs   string // memory volumes that the server has made; known once the sandbox is there
	Seccomp string // directory of localhost seccomp profiles
}

// ownIDs is the number of user and group IDs of a pod with a user namespace of its own.
const ownIDs = "65536"

// OwnUsers reports whether the pod has a user namespace of its own (hostUsers: false).
func (p *Pod) OwnUsers() bool { return p.Spec.HostUsers != nil && !*p.Spec.HostUsers }

// namespaces returns the namespace options of the pod and its containers.
func (p *Pod) namespaces() *runtimeapi.NamespaceOption {
	ns := &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}
	if p.Spec.ShareProcessNamespace {
		ns.Pid = runtimeapi.NamespaceMode_POD
	}
	if p.Spec.HostPID {
		ns.Pid = runtimeapi.NamespaceMode_NODE
	}
	if p.Spec.HostNetwork {
		ns.Network = runtimeapi.NamespaceMode_NODE
	}
	if p.Spec.HostIPC {
		ns.Ipc = runtimeapi.NamespaceMode_NODE
	}
	if p.OwnUsers() {
		ns.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD}
	}
	return ns
}

// privileged reports whether a container of the pod is: the pod sandbox must be, too.
func (p *Pod) privileged() bool {
	return slices.ContainsFunc(slices.Concat(p.Spec.InitContainers, p.Spec.Containers), func(c Container) bool {
		return c.SecurityContext != nil && is(c.SecurityContext.Privileged)
	})
}

// Sandbox returns the configuration of the pod's sandbox.
func (p *Pod) Sandbox(at Place) *runtimeapi.PodSandboxConfig {
	cfg := &runtimeapi.PodSandboxConfig{
		Metadata:     client.PodMetadata(p.Metadata.Namespace, p.Metadata.Name),
		Hostname:     p.Spec.Hostname,
		LogDirectory: at.Logs,
		Labels:       map[string]string{},
		Annotations:  map[string]string{},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: p.namespaces(), Privileged: p.privileged()},
			Sysctls:         map[string]string{},
		},
	}
	for k, v := range p.Metadata.Labels {
		cfg.Labels[k] = v
	}
	for k, v := range p.Metadata.Annotations {
		cfg.Annotations[k] = v
	}
	if sizes := p.memoryVolumes(); len(sizes) > 0 {
		text, _ := json.Marshal(sizes) // a map of numbers
		cfg.Annotations[api.AnnotationMemoryVolumes] = string(text)
	}
	cfg.PortMappings = append(cfg.PortMappings, p.servicePorts...)
	if p.OwnUsers() {
		cfg.Annotations[api.AnnotationOwnIDs] = ownIDs
	}
	if text := p.networksText(); text != "" {
		cfg.Annotations[api.AnnotationNetworks] = text
	}
	cfg.Labels[api.LabelMadeBy], cfg.Annotations[api.AnnotationRunID] = api.MadeByPlay, at.UID
	if p.Part.Workload != "" {
		cfg.Labels[api.LabelWorkload] = p.Part.Workload
	}
	if cfg.Hostname == "" && !p.Spec.HostNetwork {
		cfg.Hostname = p.Metadata.Name
	}
	if p.Spec.SecurityContext != nil {
		for _, s := range p.Spec.SecurityContext.Sysctls {
			cfg.Linux.Sysctls[s.Name] = s.Value
		}
	}
	for _, list := range [][]Container{p.Spec.InitContainers, p.Spec.Containers} { // sidecars have ports, too
		for _, c := range list {
			cfg.PortMappings = append(cfg.PortMappings, hostPorts(c.Ports)...)
		}
	}
	if d := p.Spec.DNSConfig; d != nil {
		cfg.DnsConfig = &runtimeapi.DNSConfig{Servers: d.Nameservers, Searches: d.Searches}
		for _, o := range d.Options {
			text := o.Name
			if o.Value != nil {
				text += ":" + *o.Value
			}
			cfg.DnsConfig.Options = append(cfg.DnsConfig.Options, text)
		}
	}
	return cfg
}

func hostPorts(ports []Port) []*runtimeapi.PortMapping {
	var out []*runtimeapi.PortMapping
	for _, p := range ports {
		if p.HostPort == 0 {
			continue
		}
		m := &runtimeapi.PortMapping{ContainerPort: p.ContainerPort, HostPort: p.HostPort, HostIp: p.HostIP}
		switch p.Protocol {
		case "UDP":
			m.Protocol = runtimeapi.Protocol_UDP
		case "SCTP":
			m.Protocol = runtimeapi.Protocol_SCTP
		}
		out = append(out, m)
	}
	return out
}

// Container returns the configuration of a container of the pod. podIP is the
// address of the pod, "" if it has none.
func (p *Pod) Container(c *Container, s *Set, at Place, attempt uint32, podIP string) (*runtimeapi.ContainerConfig, error) {
	s = s.in(p.Metadata.Namespace)
	envs, err := c.environment(s, func(path string) (string, error) { return p.field(path, at.UID, podIP) })
	if err != nil {
		return nil, fmt.Errorf("%w: container %s: %w", ErrManifest, c.Name, err)
	}
	mounts, annotations, err := p.mounts(c, at, envs)
	if annotations == nil {
		annotations = map[string]string{}
	}
	if err == nil {
		err = api.SetOptions(annotations, &api.ContainerOptions{SecretEnv: c.secretVariables(s)})
	}
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", c.Name, err)
	}
	sec, err := p.security(c, at)
	if err != nil {
		return nil, fmt.Errorf("%w: container %s: %w", ErrManifest, c.Name, err)
	}
	var stop runtimeapi.Signal // 0: the image's
	if c.Lifecycle != nil {
		stop = runtimeapi.Signal(runtimeapi.Signal_value["SIGNAL_"+c.Lifecycle.StopSignal])
	}
	return &runtimeapi.ContainerConfig{
		StopSignal:  stop,
		Metadata:    &runtimeapi.ContainerMetadata{Name: c.Name, Attempt: attempt},
		Image:       &runtimeapi.ImageSpec{Image: c.Image, UserSpecifiedImage: c.Image},
		Command:     expandAll(c.Command, envs),
		Args:        expandAll(c.Args, envs),
		WorkingDir:  c.WorkingDir,
		Envs:        envs,
		Mounts:      mounts,
		Labels:      map[string]string{api.LabelMadeBy: api.MadeByPlay},
		Annotations: annotations,
		LogPath:     fmt.Sprintf("%s/%d.log", c.Name, attempt),
		Stdin:       c.Stdin, StdinOnce: c.StdinOnce, Tty: c.TTY,
		Linux: &runtimeapi.LinuxContainerConfig{Resources: c.limits(), SecurityContext: sec},
	}, nil
}

var fieldKey = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^metadata\.(labels|annotations)\['([^']+)'\]$`)
})

// field returns the value of a fieldRef.
func (p *Pod) field(path, uid, podIP string) (string, error) {
	switch path {
	case "metadata.name":
		return p.Metadata.Name, nil
	case "metadata.namespace":
		return p.Metadata.Namespace, nil
	case "metadata.uid":
		return uid, nil
	case "status.podIP", "status.podIPs":
		return podIP, nil
	case "spec.nodeName", "spec.serviceAccountName", "status.hostIP", "status.hostIPs":
		return "", nil
	}
	if m := fieldKey().FindStringSubmatch(path); m != nil {
		if m[1] == "labels" {
			return p.Metadata.Labels[m[2]], nil
		}
		return p.Metadata.Annotations[m[2]], nil
	}
	return "", fmt.Errorf("fieldRef %q is not supported", path)
}

// limits returns the resources of a container, computed as the kubelet does (k8s.io/kubernetes
// pkg/kubelet/cm: MilliCPUToQuota, MilliCPUToShares).
func (c *Container) limits() *runtimeapi.LinuxContainerResources {
	r := &runtimeapi.LinuxContainerResources{}
	if q, ok := c.Resources.Limits["cpu"]; ok && q > 0 {
		r.CpuPeriod, r.CpuQuota = 100_000, max(int64(float64(q)*100_000), 1000)
	}
	request, ok := c.Resources.Requests["cpu"]
	if !ok {
		request = c.Resources.Limits["cpu"]
	}
	if request > 0 {
		r.CpuShares = max(int64(float64(request)*1024), 2)
	}
	if q, ok := c.Resources.Limits["memory"]; ok {
		r.MemoryLimitInBytes = int64(q)
	}
	return r
}

// security returns the security context of a container, whose settings take
// precedence over those of the pod. Without a setting, the default seccomp profile
// is used.
func (p *Pod) security(c *Container, at Place) (*runtimeapi.LinuxContainerSecurityContext, error) {
	out := &runtimeapi.LinuxContainerSecurityContext{
		NamespaceOptions: p.namespaces(),
		Seccomp:          &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
		MaskedPaths:      MaskedPaths,
		ReadonlyPaths:    ReadonlyPaths,
		Capabilities:     &runtimeapi.Capability{},
	}
	var user, group *int64
	var profile *SeccompProfile
	var nonRoot *bool
	if s := p.Spec.SecurityContext; s != nil {
		user, group, profile, nonRoot = s.RunAsUser, s.RunAsGroup, s.SeccompProfile, s.RunAsNonRoot
		out.SupplementalGroups = append(out.SupplementalGroups, s.SupplementalGroups...)
		if s.FSGroup != nil {
			out.SupplementalGroups = append(out.SupplementalGroups, *s.FSGroup)
		}
	}
	if s := c.SecurityContext; s != nil {
		user, group, profile, nonRoot = or(s.RunAsUser, user), or(s.RunAsGroup, group), or(s.SeccompProfile, profile), or(s.RunAsNonRoot, nonRoot)
		out.ReadonlyRootfs = is(s.ReadOnlyRootFilesystem)
		out.NoNewPrivs = s.AllowPrivilegeEscalation != nil && !*s.AllowPrivilegeEscalation
		if s.Capabilities != nil {
			out.Capabilities.AddCapabilities, out.Capabilities.DropCapabilities = s.Capabilities.Add, s.Capabilities.Drop
		}
		if out.Privileged = is(s.Privileged); out.Privileged {
			out.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
			out.MaskedPaths, out.ReadonlyPaths = nil, nil
		}
		if s.ProcMount == "Unmasked" {
			out.MaskedPaths, out.ReadonlyPaths = nil, nil
		}
	}
	if user != nil {
		out.RunAsUser = &runtimeapi.Int64Value{Value: *user}
	}
	if group != nil {
		out.RunAsGroup = &runtimeapi.Int64Value{Value: *group}
	}
	if is(nonRoot) && user != nil && *user == 0 {
		return nil, fmt.Errorf("runAsNonRoot is true, but runAsUser is 0")
	}
	if profile == nil {
		return out, nil
	}
	switch profile.Type {
	case "RuntimeDefault":
		out.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
	case "Unconfined":
		out.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
	case "Localhost":
		if !filepath.IsLocal(profile.LocalhostProfile) {
			return nil, fmt.Errorf("seccompProfile.localhostProfile %q leads out of %s", profile.LocalhostProfile, at.Seccomp)
		}
		out.Seccomp = &runtimeapi.SecurityProfile{
			ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: filepath.Join(at.Seccomp, profile.LocalhostProfile),
		}
	default:
		return nil, fmt.Errorf("seccompProfile.type: %q is not RuntimeDefault, Unconfined or Localhost", profile.Type)
	}
	return out, nil
}

// NonRoot reports whether the container must not run as root, and whether the
// manifest sets its user; if not, the image does.
func (p *Pod) NonRoot(c *Container) (must, known bool) {
	if s := p.Spec.SecurityContext; s != nil {
		must, known = is(s.RunAsNonRoot), s.RunAsUser != nil
	}
	if s := c.SecurityContext; s != nil {
		if s.RunAsNonRoot != nil {
			must = *s.RunAsNonRoot
		}
		known = known || s.RunAsUser != nil
	}
	return must, known
}

func or[T any](a, b *T) *T {
	if a != nil {
		return a
	}
	return b
}

func is(b *bool) bool { return b != nil && *b }
