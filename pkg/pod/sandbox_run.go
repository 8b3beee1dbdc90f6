package pod

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/pkg/cgroup"
	"github.com/subpod/subpod/pkg/labels"
	"github.com/subpod/subpod/pkg/quantity"
	"github.com/subpod/subpod/pkg/state"
)

// RunPod makes a pod sandbox and returns its ID. A retry with the same
// metadata and configuration returns the pod that the first request made.
// ErrInvalid, ErrExists.
func (r *Runtime) RunPod(ctx context.Context, cfg *runtimeapi.PodSandboxConfig, handler string) (string, error) {
	return r.runPod(ctx, cfg, handler, nil)
}

// runPod is RunPod; first, when set, is made in the pod sandbox as well.
func (r *Runtime) runPod(ctx context.Context, cfg *runtimeapi.PodSandboxConfig, handler string, first *firstContainer) (string, error) {
	if err := validatePod(cfg); err != nil {
		return "", err
	}
	cfg, err := r.onHostNetwork(cfg)
	if err != nil {
		return "", err
	}
	handler, err = r.Handler(handler)
	if err != nil {
		return "", err
	}
	id := newID()
	existing, settle, err := r.podNames.claim(ctx, podName(cfg.Metadata), id)
	if err != nil {
		return "", err
	}
	if settle == nil {
		return r.samePod(existing, cfg, handler)
	}
	p := state.Pod{
		ID:        id,
		Config:    state.Msg(cfg),
		Handler:   handler,
		CreatedAt: time.Now(),
		Facts:     state.PodFacts{Node: r.Node, NetworkAsked: wantsNetwork(cfg)},
		Status:    state.PodStatus{Phase: state.PodCreating},
	}
	err = r.makePod(ctx, p, first)
	if err != nil {
		err = errors.Join(err, r.undoPod(ctx, id))
	}
	settle(err == nil)
	if err != nil {
		return "", fmt.Errorf("run pod sandbox %s: %w", podName(cfg.Metadata), err)
	}
	r.emitPod(id, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
	return id, nil
}

// makePod is the sequence; what it made is in the record when it fails.
func (r *Runtime) makePod(ctx context.Context, p state.Pod, first *firstContainer) error {
	unlock, err := r.pods.alone(ctx, p.ID)
	if err != nil {
		return err
	}
	defer unlock()
	group, err := r.podCgroup(p)
	if err != nil {
		return err
	}
	if p.Config.V.GetLinux().GetCgroupParent() == "" {
		p.Facts.Cgroup = group.Dir // else it is its maker's to remove
	}
	if err := r.State.PutPod(p); err != nil {
		return err
	}
	if first != nil {
		// A container has a record only where its pod sandbox has one, and is
		// undone before that is: both in here.
		first.begin(ctx, r, p)
		defer func() { first.end(p, err) }()
	}
	err = r.furnishPod(ctx, &p, group)
	return err
}

// furnishPod makes what a pod sandbox consists of. Each fact is in p before the
// next step begins.
func (r *Runtime) furnishPod(ctx context.Context, p *state.Pod, group cgroup.Pod) error {
	facts := &p.Facts
	dir := r.podDir(p.ID)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make the pod's directory: %w", err)
	}
	if err := r.writePodFiles(dir, p.Config.V); err != nil {
		return err
	}
	ns := namespaceOptions(p.Config.V)
	if !onNode(ns.GetIpc()) {
		facts.Shm = filepath.Join(dir, "shm")
		if err := mountShm(facts.Shm); err != nil {
			return err
		}
	}
	spec, err := r.pinSpec(dir, p.Config.V)
	if err != nil {
		return err
	}
	if facts.Pins, err = netns.Pin(ctx, spec); err != nil {
		return err
	}
	if facts.NetworkAsked {
		if err := r.setupNetwork(ctx, p); err != nil {
			return err
		}
		if err := r.writeHosts(dir, p.Config.V, facts.Network); err != nil {
			return err
		}
	}
	if err := group.Make(); err != nil {
		return err
	}
	p.Status.Phase = state.PodReady
	return r.State.PutPod(*p)
}

func (r *Runtime) setupNetwork(ctx context.Context, p *state.Pod) error {
	result, err := r.Network.Setup(ctx, r.networkPod(*p))
	if err != nil {
		return fmt.Errorf("set up the network: %w", err)
	}
	p.Facts.Network = &result
	_, later := netns.SplitSysctls(p.Config.V.GetLinux().GetSysctls())
	if len(later) > 0 {
		return netns.ApplySysctls(p.Facts.Pins.Net, later)
	}
	return nil
}

// wantsNetwork reports whether the pod sandbox is to be joined to the pod network.
func wantsNetwork(cfg *runtimeapi.PodSandboxConfig) bool {
	return !onNode(namespaceOptions(cfg).GetNetwork()) && cfg.Annotations[labels.Network] != labels.NoNetwork
}

// onHostNetwork puts a pod that wants a network on the node's where there is no
// other. Nothing stands between the host's ports and the pod's then.
func (r *Runtime) onHostNetwork(cfg *runtimeapi.PodSandboxConfig) (*runtimeapi.PodSandboxConfig, error) {
	if !r.HostNetwork || !wantsNetwork(cfg) {
		return cfg, nil
	}
	for _, m := range portMappings(cfg) {
		if m.HostPort != m.ContainerPort {
			return nil, fmt.Errorf("%w: host port %d cannot lead to port %d of the pod: pods are on the network that the daemon was started in (node.uplink); let the pod listen on the host port itself",
				ErrInvalid, m.HostPort, m.ContainerPort)
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

// networkPod is the pod sandbox as the network knows it.
func (r *Runtime) networkPod(p state.Pod) netns.Pod {
	cfg := p.Config.V
	ingress, egress, _ := podRates(cfg) // validated
	return netns.Pod{
		ID:          p.ID,
		Namespace:   cfg.Metadata.Namespace,
		Name:        cfg.Metadata.Name,
		UID:         cfg.Metadata.Uid,
		NetNS:       p.Facts.Pins.Net,
		Ports:       portMappings(cfg),
		IngressRate: cmp.Or(ingress, r.IngressRate),
		EgressRate:  cmp.Or(egress, r.EgressRate),
	}
}

// podRates returns what the pod's annotations ask for, in bits per second; 0 where
// they do not (https://kubernetes.io/docs/concepts/extend-kubernetes/compute-storage-net/network-plugins/#support-traffic-shaping).
func podRates(cfg *runtimeapi.PodSandboxConfig) (ingress, egress uint64, err error) {
	const ingressKey, egressKey = "kubernetes.io/ingress-bandwidth", "kubernetes.io/egress-bandwidth"
	if ingress, err = quantity.ParseRate(cfg.Annotations[ingressKey]); err != nil {
		return 0, 0, fmt.Errorf("%w: annotation %s: %w", ErrInvalid, ingressKey, err)
	}
	if egress, err = quantity.ParseRate(cfg.Annotations[egressKey]); err != nil {
		return 0, 0, fmt.Errorf("%w: annotation %s: %w", ErrInvalid, egressKey, err)
	}
	return ingress, egress, nil
}

func (r *Runtime) pinSpec(dir string, cfg *runtimeapi.PodSandboxConfig) (netns.PinSpec, error) {
	ns := namespaceOptions(cfg)
	userNS, err := r.podUserNS(cfg)
	if err != nil {
		return netns.PinSpec{}, err
	}
	ownNet := !onNode(ns.GetNetwork())
	sysctls, later := netns.SplitSysctls(cfg.GetLinux().GetSysctls())
	if !ownNet && len(later) > 0 {
		return netns.PinSpec{}, fmt.Errorf("%w: sysctls of interfaces, in a pod sandbox on the node's network", ErrInvalid)
	}
	return netns.PinSpec{
		Dir:      dir,
		Net:      ownNet,
		IPC:      !onNode(ns.GetIpc()),
		UTS:      ownNet, // a pod on the node's network has the node's name
		Hostname: cfg.Hostname,
		PID:      ns.GetPid() == runtimeapi.NamespaceMode_POD,
		Sysctls:  sysctls,
		UserNS:   userNS,
	}, nil
}

// samePod answers a retried RunPodSandbox.
func (r *Runtime) samePod(id string, cfg *runtimeapi.PodSandboxConfig, handler string) (string, error) {
	p, err := r.State.Pod(id)
	if err != nil {
		return "", err
	}
	if p.Handler != handler || !proto.Equal(p.Config.V, cfg) {
		return "", fmt.Errorf("%w: pod sandbox %s is %s, made from another configuration; remove it, or raise the attempt", ErrExists, podName(cfg.Metadata), id)
	}
	if p.Status.Phase != state.PodReady {
		return "", fmt.Errorf("%w: pod sandbox %s is %s and %s; remove it, or raise the attempt", ErrExists, podName(cfg.Metadata), id, strings.ToLower(string(p.Status.Phase)))
	}
	return id, nil
}

// undoPod removes what a failed RunPod made. What cannot be undone stays in the
// record as NotReady, so that a later StopPodSandbox or RemovePodSandbox tries
// again.
func (r *Runtime) undoPod(ctx context.Context, id string) error {
	ctx, cancel := r.detached(ctx)
	defer cancel()
	p, err := r.State.Pod(id)
	if errors.Is(err, state.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, c := range r.State.ContainersOf(id) {
		errs = append(errs, r.undoContainer(ctx, c.ID))
	}
	if err := errors.Join(append(errs, r.teardownPod(ctx, p))...); err != nil {
		_, markErr := r.State.UpdatePod(id, func(p *state.Pod) error {
			p.Status = state.PodStatus{Phase: state.PodNotReady, Reason: "creation failed and could not be undone: " + err.Error()}
			return nil
		})
		return errors.Join(err, markErr)
	}
	return r.State.DeletePod(id)
}

// podName names a pod sandbox in messages, and no other one.
func podName(m *runtimeapi.PodSandboxMetadata) string {
	return fmt.Sprintf("%s/%s (uid %s, attempt %d)", part(m.GetNamespace()), part(m.GetName()), part(m.GetUid()), m.GetAttempt())
}

// part quotes a part of a name that could be taken for more than one.
func part(s string) string {
	if s == "" || strings.ContainsAny(s, "/(),\" \t\r\n") {
		return strconv.Quote(s)
	}
	return s
}

func validatePod(cfg *runtimeapi.PodSandboxConfig) error {
	switch {
	case cfg == nil:
		return fmt.Errorf("%w: the pod sandbox has no config", ErrInvalid)
	case cfg.Metadata == nil || cfg.Metadata.Name == "":
		return fmt.Errorf("%w: the pod sandbox has no metadata.name", ErrInvalid)
	case len(cfg.Hostname) > 64:
		return fmt.Errorf("%w: the hostname has %d bytes; the kernel takes 64", ErrInvalid, len(cfg.Hostname))
	case strings.ContainsAny(cfg.Hostname, " \t\r\n\x00/"):
		return fmt.Errorf("%w: the hostname %q holds white space or a slash", ErrInvalid, cfg.Hostname)
	case cfg.LogDirectory != "" && !filepath.IsAbs(cfg.LogDirectory):
		return fmt.Errorf("%w: log_directory %q is not absolute", ErrInvalid, cfg.LogDirectory)
	}
	if sc := cfg.GetLinux().GetSecurityContext(); sc.GetRunAsGroup() != nil && sc.GetRunAsUser() == nil {
		return fmt.Errorf("%w: the pod sandbox has run_as_group without run_as_user", ErrInvalid)
	}
	if err := validateNamespaces(namespaceOptions(cfg)); err != nil {
		return err
	}
	if _, _, err := podRates(cfg); err != nil {
		return err
	}
	return validatePorts(cfg)
}

// validateNamespaces: a pod sandbox can share its PID namespace among the
// containers or leave it to each; network and IPC they always share.
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
			return fmt.Errorf("%w: %s namespace mode %s: a pod sandbox can have %v", ErrInvalid, n.what, n.mode, n.known)
		}
	}
	return nil
}

func validatePorts(cfg *runtimeapi.PodSandboxConfig) error {
	for _, m := range cfg.PortMappings {
		if m.HostPort == 0 {
			continue // no host port asked for (proto: PortMapping.host_port)
		}
		if m.HostPort < 0 || m.HostPort > 65535 || m.ContainerPort < 1 || m.ContainerPort > 65535 {
			return fmt.Errorf("%w: port mapping %d → %d is outside 1-65535", ErrInvalid, m.HostPort, m.ContainerPort)
		}
		if m.HostIp == "" {
			continue
		}
		if _, err := netip.ParseAddr(m.HostIp); err != nil {
			return fmt.Errorf("%w: host_ip %q of the mapping of host port %d is not an address", ErrInvalid, m.HostIp, m.HostPort)
		}
	}
	return nil
}

// portMappings returns the host ports of a valid configuration.
func portMappings(cfg *runtimeapi.PodSandboxConfig) []netns.PortMapping {
	var out []netns.PortMapping
	for _, m := range cfg.PortMappings {
		if m.HostPort == 0 {
			continue
		}
		pm := netns.PortMapping{
			Proto:         strings.ToLower(m.Protocol.String()),
			HostPort:      uint16(m.HostPort),
			ContainerPort: uint16(m.ContainerPort),
		}
		// Valid or empty; 0.0.0.0 and :: mean the addresses of their family alone.
		pm.HostIP, _ = netip.ParseAddr(m.HostIp)
		out = append(out, pm)
	}
	return out
}
