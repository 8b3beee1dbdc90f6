package kube

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
)

// Service is a Service: names that lead to the pods of the manifest that its selector
// matches.
type Service struct {
	APIVersion string      `json:"apiVersion"`
	Kind       string      `json:"kind"`
	Metadata   Meta        `json:"metadata"`
	Spec       ServiceSpec `json:"spec"`
	Status     any         `json:"status"` // not read

	origin    *object
	published bool // a pod has its ports of the host
}

// ServiceSpec is a ServiceSpec. What says how a cluster balances or announces has no
// meaning here.
type ServiceSpec struct {
	Type      string            `json:"type"`
	Selector  map[string]string `json:"selector"`
	Ports     []ServicePort     `json:"ports"`
	ClusterIP string            `json:"clusterIP"`

	ExternalName                  string   `json:"externalName"`
	ClusterIPs                    []string `json:"clusterIPs"`
	IPFamilies                    []string `json:"ipFamilies"`
	IPFamilyPolicy                string   `json:"ipFamilyPolicy"`
	SessionAffinity               string   `json:"sessionAffinity"`
	SessionAffinityConfig         any      `json:"sessionAffinityConfig"`
	ExternalTrafficPolicy         string   `json:"externalTrafficPolicy"`
	InternalTrafficPolicy         string   `json:"internalTrafficPolicy"`
	TrafficDistribution           string   `json:"trafficDistribution"`
	PublishNotReadyAddresses      bool     `json:"publishNotReadyAddresses"`
	LoadBalancerIP                string   `json:"loadBalancerIP"`
	LoadBalancerClass             *string  `json:"loadBalancerClass"`
	LoadBalancerSourceRanges      []string `json:"loadBalancerSourceRanges"`
	AllocateLoadBalancerNodePorts *bool    `json:"allocateLoadBalancerNodePorts"`
	HealthCheckNodePort           int32    `json:"healthCheckNodePort"`
	ExternalIPs                   []string `json:"externalIPs"`
}

// ServicePort is a ServicePort.
type ServicePort struct {
	Name        string  `json:"name"`
	Protocol    string  `json:"protocol"`
	AppProtocol *string `json:"appProtocol"`
	Port        int32   `json:"port"`
	TargetPort  PortOf  `json:"targetPort"`
	NodePort    int32   `json:"nodePort"`
}

// maxRemapped is how many services with ports of their own can lead to one pod.
const maxRemapped = 15

// nodePorts is the range of ports of the host that services get when they name none.
const firstNodePort, nodePortCount = 30000, 2768

// addServices resolves the services: each pod learns those that it is a part of.
func (s *Set) addServices() []error {
	var errs []error
	for _, svc := range s.Services {
		if svc.Metadata.Namespace == "" {
			svc.Metadata.Namespace = "default"
		}
		if problem := svc.problem(); problem != "" {
			errs = append(errs, svc.origin.problem("%s", problem))
			continue
		}
		for _, p := range s.Pods {
			if p.Metadata.Namespace != svc.Metadata.Namespace || p.Spec.HostNetwork || !svc.selects(p) {
				continue
			}
			if err := p.join(svc, !svc.published); err != nil {
				errs = append(errs, svc.origin.problem("spec.ports: %w", err))
			}
			svc.published = true
		}
	}
	for _, p := range s.Pods {
		// Those with ports of their own come first: there is room for few.
		slices.SortStableFunc(p.networks.Services, func(a, b api.PodService) int { return rank(a) - rank(b) })
		if len(p.networks.Services) > maxRemapped && rank(p.networks.Services[maxRemapped]) == 0 {
			errs = append(errs, fmt.Errorf("%w: pod %s is part of more than %d services whose port is not the targetPort", ErrManifest, p.Metadata.Name, maxRemapped))
		}
	}
	return errs
}

// rank is 0 for a service with a port that is not the pod's.
func rank(s api.PodService) int {
	if slices.ContainsFunc(s.Ports, func(p api.PodServicePort) bool { return p.Port != p.TargetPort }) {
		return 0
	}
	return 1
}

func (svc *Service) problem() string {
	switch svc.Spec.Type {
	case "", "ClusterIP", "NodePort", "LoadBalancer":
	case "ExternalName":
		return "spec.type: ExternalName is not supported; name the host itself, or use hostAliases"
	default:
		return fmt.Sprintf("spec.type: %q is not ClusterIP, NodePort or LoadBalancer", svc.Spec.Type)
	}
	if !isDNSName(svc.Metadata.Name) || strings.Contains(svc.Metadata.Name, ".") {
		return fmt.Sprintf("metadata.name: %q is not a DNS label in lower case", svc.Metadata.Name)
	}
	if len(svc.Spec.LoadBalancerSourceRanges) > 0 {
		return "spec.loadBalancerSourceRanges is not supported: who can connect is not restricted"
	}
	if len(svc.Spec.Selector) == 0 {
		return "spec.selector is missing: endpoints of other kinds are not supported"
	}
	for i, p := range svc.Spec.Ports {
		if p.Port < 1 || p.Port > 65535 || p.NodePort < 0 || p.NodePort > 65535 || p.TargetPort.Number < 0 || p.TargetPort.Number > 65535 {
			return fmt.Sprintf("spec.ports[%d]: a port is not between 1 and 65535", i)
		}
		if p.Protocol != "" && p.Protocol != "TCP" && p.Protocol != "UDP" && p.Protocol != "SCTP" {
			return fmt.Sprintf("spec.ports[%d].protocol: %q is not TCP, UDP or SCTP", i, p.Protocol)
		}
	}
	return ""
}

func (svc *Service) selects(p *Pod) bool {
	for k, v := range svc.Spec.Selector {
		if have, ok := p.Metadata.Labels[k]; !ok || have != v {
			return false
		}
	}
	return true
}

// headless services lead to pods as they are.
func (svc *Service) headless() bool { return svc.Spec.ClusterIP == "None" }

// names returns the names by which a name of the service's namespace is known.
func (svc *Service) names(name string) []string {
	ns := svc.Metadata.Namespace
	return []string{name, name + "." + ns, name + "." + ns + ".svc", name + "." + ns + ".svc.cluster.local"}
}

// join makes the pod a part of the service. The first pod has its ports on the host: a
// port of the host leads to one pod.
func (p *Pod) join(svc *Service, first bool) error {
	names := svc.names(svc.Metadata.Name)
	if svc.headless() {
		host := p.Spec.Hostname
		if host == "" {
			host = p.Metadata.Name
		}
		p.networks.Services = append(p.networks.Services, api.PodService{Names: names}, api.PodService{Names: svc.names(host + "." + svc.Metadata.Name)})
		return nil
	}
	one := api.PodService{Names: names}
	for _, port := range svc.Spec.Ports {
		target, err := p.targetPort(port)
		if err != nil {
			return err
		}
		protocol := "TCP"
		if port.Protocol != "" {
			protocol = port.Protocol
		}
		one.Ports = append(one.Ports, api.PodServicePort{Protocol: strings.ToLower(protocol), Port: port.Port, TargetPort: target})
		if host := svc.hostPort(port); first && host > 0 {
			p.servicePorts = append(p.servicePorts, &runtimeapi.PortMapping{ContainerPort: target, HostPort: host,
				Protocol: runtimeapi.Protocol(runtimeapi.Protocol_value[protocol])})
		}
	}
	p.networks.Services = append(p.networks.Services, one)
	return nil
}

// targetPort returns the pod's port that a port of a service leads to.
func (p *Pod) targetPort(port ServicePort) (int32, error) {
	if port.TargetPort == (PortOf{}) {
		return port.Port, nil
	}
	for _, list := range [][]Container{p.Spec.Containers, p.Spec.InitContainers} {
		for i := range list {
			if n := port.TargetPort.In(&list[i]); n > 0 {
				return n, nil
			}
		}
	}
	return 0, fmt.Errorf("targetPort: pod %s has no port named %q", p.Metadata.Name, port.TargetPort.Name)
}

// hostPort returns the port of the host that leads to a port of the service, 0 for none.
// One that the manifest does not choose is always the same.
func (svc *Service) hostPort(port ServicePort) int32 {
	switch {
	case svc.Spec.Type == "LoadBalancer" && port.NodePort == 0 && port.Port >= 1024:
		return port.Port
	case svc.Spec.Type != "NodePort" && svc.Spec.Type != "LoadBalancer":
		return 0
	case port.NodePort > 0:
		return port.NodePort
	}
	h := fnv.New32a()
	fmt.Fprintf(h, "%s/%s/%s/%d", svc.Metadata.Namespace, svc.Metadata.Name, port.Protocol, port.Port)
	return firstNodePort + int32(h.Sum32()%nodePortCount)
}

// HostPorts describes how the services of the manifest are reached from the host, one
// line for each port.
func (s *Set) HostPorts() []string {
	var out []string
	for _, svc := range s.Services {
		for _, port := range svc.Spec.Ports {
			if host := svc.hostPort(port); host > 0 && svc.published {
				out = append(out, fmt.Sprintf("service %s: port %d is port %d of the host", svc.Metadata.Name, port.Port, host))
			}
		}
	}
	return out
}

// networksText is the value of api.AnnotationNetworks; "" for none.
func (p *Pod) networksText() string {
	n := p.networks
	for _, a := range p.Spec.HostAliases {
		n.Hosts = append(n.Hosts, api.HostNames{IP: a.IP, Names: a.Hostnames})
	}
	if len(n.Networks)+len(n.Services)+len(n.Hosts) == 0 {
		return ""
	}
	text, _ := json.Marshal(n) // strings and numbers
	return string(text)
}

// Attach puts the pods of the manifest into networks.
func (s *Set) Attach(networks []api.PodNetwork) {
	for _, p := range s.Pods {
		if !p.Spec.HostNetwork {
			p.networks.Networks = networks
		}
	}
}
