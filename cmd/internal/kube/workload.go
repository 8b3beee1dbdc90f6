package kube

import (
	"fmt"
	"math"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/quantity"
	"github.com/subpod/subpod/pkg/workload"
)

const (
	always = "Always"
	never  = "Never"
	// defaultGrace is terminationGracePeriodSeconds where the manifest has none.
	defaultGrace = 30
)

// Workload returns what the server is to run of the pod, in the order in which it is
// started, and the configurations in it. What is known only once the sandbox is there has
// a placeholder of package workload.
func (p *Pod) Workload(s *Set, at Place) (*workload.Spec, []*runtimeapi.ContainerConfig, error) {
	at.Tmpfs = workload.Volumes
	spec := &workload.Spec{Backoff: workload.PlayBackoff, Grace: quantity.Seconds(p.Grace())}
	if d := p.Spec.ActiveDeadlineSeconds; d != nil {
		if spec.Deadline = quantity.Seconds(*d); *d < 1 || *d > math.MaxInt32 {
			return nil, nil, fmt.Errorf("activeDeadlineSeconds %d is not between 1 and %d", *d, math.MaxInt32)
		}
	}
	var configs []*runtimeapi.ContainerConfig
	add := func(c *Container, role, policy string) error {
		cfg, err := p.Container(c, s, at, 0, workload.PodIP)
		if err != nil {
			return err
		}
		text, err := proto.Marshal(cfg)
		if err != nil {
			return fmt.Errorf("encode container %s: %w", c.Name, err)
		}
		w := workload.Container{
			Name: c.Name, Role: role, Restart: p.policy(policy, role), Config: text, Fresh: true,
			Startup: c.StartupProbe.workload(c), Liveness: c.LivenessProbe.workload(c), Readiness: c.ReadinessProbe.workload(c),
		}
		if l := c.Lifecycle; l != nil {
			w.PostStart, w.PreStop = l.PostStart.workload(c), l.PreStop.workload(c)
		}
		spec.Containers, configs = append(spec.Containers, w), append(configs, cfg)
		return nil
	}
	for i := range p.Spec.InitContainers {
		c := &p.Spec.InitContainers[i]
		role, policy := workload.Init, workload.OnFailure
		switch {
		case c.RestartPolicy == always:
			role, policy = workload.Sidecar, workload.UnlessStopped
		case p.Spec.RestartPolicy == never:
			policy = workload.No
		}
		if err := add(c, role, policy); err != nil {
			return nil, nil, err
		}
	}
	// A pod that its user has stopped is not started by the next node.
	policy := map[string]string{never: workload.No, "OnFailure": workload.OnFailure}[p.Spec.RestartPolicy]
	if policy == "" {
		policy = workload.UnlessStopped
	}
	for i := range p.Spec.Containers {
		if err := add(&p.Spec.Containers[i], workload.Main, policy); err != nil {
			return nil, nil, err
		}
	}
	return spec, configs, nil
}

// policy returns the restart policy of a container of that role: in a Job, what fails is
// run again in its place, as often as the Job allows, whatever the policy of the pod.
func (p *Pod) policy(name, role string) workload.Policy {
	switch {
	case p.retries == nil || role == workload.Sidecar:
		return workload.Policy{Name: name}
	case *p.retries == 0:
		return workload.Policy{Name: workload.No}
	}
	return workload.Policy{Name: workload.OnFailure, Max: uint32(*p.retries)}
}

// Grace returns the termination grace period of the pod, in seconds.
func (p *Pod) Grace() int64 {
	if g := p.Spec.TerminationGracePeriodSeconds; g != nil {
		return *g
	}
	return defaultGrace
}

// PreStop returns the hook that the container of that name has before it is stopped, nil
// for none.
func (p *Pod) PreStop(name string) *Hook {
	for _, list := range [][]Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			if l := list[i].Lifecycle; list[i].Name == name && l != nil {
				return l.PreStop
			}
		}
	}
	return nil
}

func (h *Hook) workload(c *Container) *workload.Hook {
	if h == nil {
		return nil
	}
	out := &workload.Hook{}
	if h.Sleep != nil {
		out.Sleep = quantity.Seconds(h.Sleep.Seconds)
	}
	if h.Exec != nil {
		out.Command = h.Exec.Command
	}
	if h.HTTPGet != nil {
		out.HTTP = h.HTTPGet.workload(c)
	}
	return out
}

func (p *Probe) workload(c *Container) *workload.Probe {
	if p == nil {
		return nil
	}
	out := &workload.Probe{
		Delay: seconds(p.InitialDelaySeconds, 0), Period: p.Period(), Timeout: p.Timeout(),
		Successes: p.Successes(), Failures: p.Failures(),
	}
	switch {
	case p.Exec != nil:
		out.Command = p.Exec.Command
	case p.TCPSocket != nil:
		out.TCP = &workload.Address{Host: p.TCPSocket.Host, Port: p.TCPSocket.Port.In(c)}
	case p.GRPC != nil:
		out.GRPC = &workload.GRPC{Address: workload.Address{Port: p.GRPC.Port}, Service: p.GRPC.Service}
	default:
		out.HTTP = p.HTTPGet.workload(c)
	}
	return out
}

func (g *HTTPGet) workload(c *Container) *workload.HTTP {
	out := &workload.HTTP{Address: workload.Address{Host: g.Host, Port: g.Port.In(c)}, TLS: g.Scheme == "HTTPS", Path: g.Path}
	for _, h := range g.HTTPHeaders {
		out.Headers = append(out.Headers, [2]string{h.Name, h.Value})
	}
	return out
}
