package api

import "time"

// DefaultNetwork is the name of the network that all pods are on unless they ask for
// another.
const DefaultNetwork = "pod"

// NetworkDomain is the domain of the names of pods.
const NetworkDomain = "subpod.internal"

// PodNetworks is the value of AnnotationNetworks.
type PodNetworks struct {
	// Networks are those that the pod is in; none is DefaultNetwork. The first that leads
	// outside has the default route and the host ports.
	Networks []PodNetwork `json:"networks,omitempty"`
	// Names are further names of the pod, in all of its networks.
	Names []string `json:"names,omitempty"`
	// Services have names and ports that lead to the pod.
	Services []PodService `json:"services,omitempty"`
	// Hosts are further lines of the pod's /etc/hosts.
	Hosts []HostNames `json:"hosts,omitempty"`
}

// PodNetwork is a network that a pod is in.
type PodNetwork struct {
	Name      string   `json:"name"`
	Aliases   []string `json:"aliases,omitempty"`
	IPs       []string `json:"ips,omitempty"` // that the pod is to have; at most one per family
	MAC       string   `json:"mac,omitempty"`
	Interface string   `json:"interface,omitempty"`
}

// PodService is a service of which the pod is a part.
type PodService struct {
	Names []string         `json:"names"`
	Ports []PodServicePort `json:"ports,omitempty"`
}

// PodServicePort is a port of a service and the one of the pod that it leads to.
type PodServicePort struct {
	Protocol   string `json:"protocol"` // "tcp", "udp" or "sctp"
	Port       int32  `json:"port"`
	TargetPort int32  `json:"targetPort"`
}

// HostNames is a line of /etc/hosts. The IP HostGateway stands for the address of the
// node.
type HostNames struct {
	IP    string   `json:"ip"`
	Names []string `json:"names"`
}

// HostGateway is in the place of an address the node's, as containers reach it.
const HostGateway = "host-gateway"

// Network is a named network.
type Network struct {
	Name      string            `json:"name"`
	ID        string            `json:"id"`
	Created   time.Time         `json:"created"`
	Interface string            `json:"interface"` // in the node
	Subnets   []NetworkSubnet   `json:"subnets"`
	Internal  bool              `json:"internal"`
	IPv6      bool              `json:"ipv6"`
	DNS       bool              `json:"dns"`
	Resolvers []string          `json:"resolvers,omitempty"`
	MTU       int               `json:"mtu,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"`
	Options   map[string]string `json:"options,omitempty"`
	// Pods are the IDs of those that are connected.
	Pods []string `json:"pods"`
}

// NetworkSubnet is a subnet of a network.
type NetworkSubnet struct {
	Subnet  string `json:"subnet"`
	Gateway string `json:"gateway"`
	Range   string `json:"range,omitempty"` // of pods that choose no address
}

// NetworkCreateRequest describes a network. Its subnets may be empty, and have no
// gateways.
type NetworkCreateRequest struct {
	Network Network `json:"network"`
}

// NetworkRequest names a network.
type NetworkRequest struct {
	Name string `json:"name"`
}

// NetworksResponse lists networks, DefaultNetwork first.
type NetworksResponse struct {
	Networks []Network `json:"networks"`
}
