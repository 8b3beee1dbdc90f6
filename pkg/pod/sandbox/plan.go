package sandbox

import (
	"cmp"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/cgroup"
	"github.com/subpod/subpod/pkg/idmap"
	"github.com/subpod/subpod/pkg/quantity"
	"github.com/subpod/subpod/pkg/state"
)

// Host is what a plan depends on besides the request.
type Host struct {
	// HostNetwork says that there is no pod network: all pods are on the node's.
	HostNetwork bool
	// IngressRate and EgressRate limit pods without annotations of their own, in bits
	// per second; 0 is no limit.
	IngressRate, EgressRate uint64
	// UIDs and GIDs are the mappings of the node's user namespace.
	UIDs, GIDs []idmap.Map
	Cgroup     cgroup.Delegation
	Egress     Egress
}

// Plan is a validated pod sandbox configuration, parsed once: everything that Build
// needs to know and that does not depend on what Build makes.
type Plan struct {
	// Config is the request as it is recorded: it differs from what was asked for
	// only where all pods are on the node's network.
	Config *runtimeapi.PodSandboxConfig

	network    bool              // the pod is joined to the pod network
	pins       netns.PinSpec     // without its directory
	ifSysctls  map[string]string // to be set once the interfaces are there
	ports      []netns.PortMapping
	ingress    uint64 // bits per second
	egress     uint64
	shmSize    uint64            // bytes of /dev/shm
	volumes    map[string]uint64 // in memory: bytes by name; 0 is the kernel's default
	resolvConf []byte            // nil: the node's default
	group      cgroup.Pod
	names      networks // named networks, names and lines of hosts(5)
	switched   bool     // the pod's sockets are switched to the host's network
	refused    error    // why they cannot be, though the pod asks for it
}

// NewPlan parses and validates the configuration of the pod sandbox id.
// errdefs.ErrInvalidArgument, cgroup.ErrBadParent.
func NewPlan(id string, cfg *runtimeapi.PodSandboxConfig, host Host) (Plan, error) {
	if err := validate(cfg); err != nil {
		return Plan{}, err
	}
	ports, err := parsePorts(cfg)
	if err != nil {
		return Plan{}, err
	}
	cfg, err = onHostNetwork(cfg, ports, host)
	if err != nil {
		return Plan{}, err
	}
	p := Plan{Config: cfg, network: wantsNetwork(cfg), ports: ports}
	if p.ingress, err = parseRate(cfg, ingressAnnotation, host.IngressRate); err != nil {
		return Plan{}, err
	}
	if p.egress, err = parseRate(cfg, egressAnnotation, host.EgressRate); err != nil {
		return Plan{}, err
	}
	if p.resolvConf, err = parseDNS(cfg.DnsConfig); err != nil {
		return Plan{}, err
	}
	if p.names, err = parseNetworks(cfg); err != nil {
		return Plan{}, err
	}
	if host.HostNetwork && len(p.names.attachments) > 0 {
		return Plan{}, invalid("the pod names networks: there are none, pods are on the network that the daemon was started in (node.uplink)")
	}
	if _, err := api.WritableCgroup(p.Config.Annotations); err != nil {
		p.refused = invalid("%w", err)
	}
	if err := p.planEgress(host); err != nil {
		return Plan{}, err
	}
	if p.volumes, err = parseMemoryVolumes(cfg); err != nil {
		return Plan{}, err
	}
	if p.shmSize, err = parseShmSize(cfg); err != nil {
		return Plan{}, err
	}
	if err := p.planNamespaces(host); err != nil {
		return Plan{}, err
	}
	p.group, err = host.Cgroup.PodPath(cfg.GetLinux().GetCgroupParent(), id)
	return p, err
}

// Resources returns the resources that a new pod sandbox's record has before any of them exists.
func (p Plan) Resources(node string) state.PodResources {
	f := state.PodResources{Node: node, NetworkAsked: p.network, Switched: p.switched}
	if p.Config.GetLinux().GetCgroupParent() == "" {
		f.Cgroup = p.group.Dir // with a parent its maker removes it
	}
	return f
}

// defaultSysctls let the processes of a pod listen on any port and send ICMP echo requests
// as any user: the network is the pod's own, so that nobody is kept from anything. They are
// the defaults of containerd (enable_unprivileged_ports, enable_unprivileged_icmp) and
// Docker, too.
var defaultSysctls = map[string]string{
	"net.ipv4.ip_unprivileged_port_start": "0",
	"net.ipv4.ping_group_range":           "0 2147483647",
}

func (p *Plan) planNamespaces(host Host) error {
	ns := state.NamespaceOptions(p.Config)
	userNS, err := parseUserNS(ns.GetUsernsOptions(), p.Config.Labels[api.LabelMadeBy] == api.MadeByRun, host)
	if err != nil {
		return err
	}
	ownNet := !onNode(ns.GetNetwork())
	var sysctls map[string]string
	sysctls, p.ifSysctls = netns.SplitSysctls(p.Config.GetLinux().GetSysctls())
	if !ownNet && len(p.ifSysctls) > 0 {
		return invalid("sysctls of interfaces, in a pod sandbox on the node's network")
	}
	hostname := p.Config.Hostname
	if !ownNet {
		hostname = "" // its UTS namespace is the node's
	}
	p.pins = netns.PinSpec{
		Net:      ownNet,
		IPC:      !onNode(ns.GetIpc()),
		UTS:      ownNet, // a pod on the node's network has the node's name
		Hostname: hostname,
		PID:      ns.GetPid() == runtimeapi.NamespaceMode_POD,
		Sysctls:  sysctls,
		UserNS:   userNS,

		DefaultSysctls: defaultSysctls,
	}
	ids := netns.IDMaps{UIDs: host.UIDs, GIDs: host.GIDs}
	if userNS != nil {
		ids = *userNS
	}
	p.pins.PauseUID, p.pins.PauseGID = idmap.Last(ids.UIDs), idmap.Last(ids.GIDs)
	return nil
}

// networkPod is the pod sandbox as the network knows it.
func (p Plan) networkPod(r state.Pod) netns.Pod {
	m := p.Config.Metadata
	pod := netns.Pod{
		ID: r.ID, Namespace: m.GetNamespace(), Name: m.GetName(), UID: m.GetUid(),
		NetNS: r.Allocated.Pins.Net, Annotations: p.Config.Annotations, Ports: p.ports, IngressRate: p.ingress, EgressRate: p.egress,
	}
	p.names.enter(&pod)
	return pod
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, fmt.Errorf(format, args...))
}

// wantsNetwork reports whether the pod sandbox is to be joined to the pod network.
func wantsNetwork(cfg *runtimeapi.PodSandboxConfig) bool {
	return !onNode(state.NamespaceOptions(cfg).GetNetwork()) && cfg.Annotations[api.AnnotationNetwork] != api.NetworkNone
}

// onHostNetwork puts a pod that wants a network on the node's where there is no
// other. Nothing stands between the host's ports and the pod's then.
func onHostNetwork(cfg *runtimeapi.PodSandboxConfig, ports []netns.PortMapping, host Host) (*runtimeapi.PodSandboxConfig, error) {
	if !host.HostNetwork || !wantsNetwork(cfg) {
		return cfg, nil
	}
	for _, m := range ports {
		if m.HostPort != m.ContainerPort {
			return nil, invalid("host port %d cannot lead to port %d of the pod: pods are on the network that the daemon was started in (node.uplink); let the pod listen on the host port itself",
				m.HostPort, m.ContainerPort)
		}
	}
	cfg = proto.CloneOf(cfg)
	cfg.Hostname = "" // it is the node's, as the network is
	if cfg.Linux == nil {
		cfg.Linux = &runtimeapi.LinuxPodSandboxConfig{}
	}
	if cfg.Linux.SecurityContext == nil {
		cfg.Linux.SecurityContext = &runtimeapi.LinuxSandboxSecurityContext{}
	}
	if cfg.Linux.SecurityContext.NamespaceOptions == nil {
		cfg.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{}
	}
	cfg.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	return cfg, nil
}

// The annotations of traffic shaping
// (https://kubernetes.io/docs/concepts/extend-kubernetes/compute-storage-net/network-plugins/#support-traffic-shaping).
const (
	ingressAnnotation = "kubernetes.io/ingress-bandwidth"
	egressAnnotation  = "kubernetes.io/egress-bandwidth"
)

// parseRate returns the rate that an annotation asks for, in bits per second;
// otherwise where it asks for none.
func parseRate(cfg *runtimeapi.PodSandboxConfig, annotation string, otherwise uint64) (uint64, error) {
	r, err := quantity.ParseRate(cfg.Annotations[annotation])
	if err != nil {
		return 0, invalid("annotation %s: %w", annotation, err)
	}
	return cmp.Or(r, otherwise), nil
}

func validate(cfg *runtimeapi.PodSandboxConfig) error {
	switch {
	case cfg == nil:
		return invalid("the pod sandbox has no config")
	case cfg.Metadata == nil || cfg.Metadata.Name == "":
		return invalid("the pod sandbox has no metadata.name")
	case len(cfg.Hostname) > 64:
		return invalid("the hostname has %d bytes; the kernel takes 64", len(cfg.Hostname))
	case strings.ContainsAny(cfg.Hostname, " \t\r\n\x00/"):
		return invalid("the hostname %q holds white space or a slash", cfg.Hostname)
	case cfg.LogDirectory != "" && !filepath.IsAbs(cfg.LogDirectory):
		return invalid("log_directory %q is not absolute", cfg.LogDirectory)
	}
	if sc := cfg.GetLinux().GetSecurityContext(); sc.GetRunAsGroup() != nil && sc.GetRunAsUser() == nil {
		return invalid("the pod sandbox has run_as_group without run_as_user")
	}
	return validateNamespaces(state.NamespaceOptions(cfg))
}

// validateNamespaces checks the namespace modes: a pod sandbox can share its PID
// namespace among the containers or leave it to each; network and IPC they always
// share.
func validateNamespaces(ns *runtimeapi.NamespaceOption) error {
	const (
		pod       = runtimeapi.NamespaceMode_POD
		container = runtimeapi.NamespaceMode_CONTAINER
		node      = runtimeapi.NamespaceMode_NODE
	)
	for _, n := range []struct {
		what  string
		mode  runtimeapi.NamespaceMode
		known []runtimeapi.NamespaceMode
	}{
		{"network", ns.GetNetwork(), []runtimeapi.NamespaceMode{pod, node}},
		{"ipc", ns.GetIpc(), []runtimeapi.NamespaceMode{pod, node}},
		{"pid", ns.GetPid(), []runtimeapi.NamespaceMode{pod, container, node}},
	} {
		if !slices.Contains(n.known, n.mode) {
			return invalid("%s namespace mode %s: a pod sandbox can have %v", n.what, n.mode, n.known)
		}
	}
	return nil
}

// parsePorts returns the host ports that the configuration asks for; one of 0 asks
// for none (proto: PortMapping.host_port).
func parsePorts(cfg *runtimeapi.PodSandboxConfig) ([]netns.PortMapping, error) {
	var out []netns.PortMapping
	for _, m := range cfg.PortMappings {
		if m.HostPort == 0 {
			continue
		}
		if m.HostPort < 0 || m.HostPort > 65535 || m.ContainerPort < 1 || m.ContainerPort > 65535 {
			return nil, invalid("port mapping %d → %d is outside 1-65535", m.HostPort, m.ContainerPort)
		}
		pm := netns.PortMapping{
			Proto:         strings.ToLower(m.Protocol.String()),
			HostPort:      uint16(m.HostPort),
			ContainerPort: uint16(m.ContainerPort),
		}
		if m.HostIp != "" { // 0.0.0.0 and :: mean the addresses of their family alone
			ip, err := netip.ParseAddr(m.HostIp)
			if err != nil || ip.Zone() != "" {
				return nil, invalid("host_ip %q of the mapping of host port %d is not an address", m.HostIp, m.HostPort)
			}
			pm.HostIP = ip
		}
		out = append(out, pm)
	}
	return out, distinctPorts(out)
}

// distinctPorts refuses a host port that is asked for twice: only one mapping can have it.
func distinctPorts(ports []netns.PortMapping) error {
	type key struct {
		proto string
		ip    netip.Addr
		port  uint16
	}
	taken := map[key]netns.PortMapping{}
	for _, m := range ports {
		for _, ip := range m.HostIPs() {
			k := key{m.Proto, ip, m.HostPort}
			if first, ok := taken[k]; ok {
				return invalid("%s host port %d on %s is mapped twice: to the ports %d and %d of the pod", m.Proto, m.HostPort, ip, first.ContainerPort, m.ContainerPort)
			}
			taken[k] = m
		}
	}
	return nil
}

func onNode(mode runtimeapi.NamespaceMode) bool { return mode == runtimeapi.NamespaceMode_NODE }
