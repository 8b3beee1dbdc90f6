// Package netns makes the namespaces of pods without a process to hold them,
// and gives the server one thread in the node network namespace. A pod's network
// is set up by an implementation of Network: netns/bridge is the built-in one.
package netns

import (
	"context"
	"net"
	"net/netip"

	"github.com/containerd/errdefs"

	"github.com/subpod/subpod/pkg/errclass"
)

// Sentinel errors of every Network.
var (
	// ErrPortTaken says that another pod or process has the host port.
	ErrPortTaken = errclass.New(errdefs.ErrAlreadyExists, "host port is taken")
	// ErrNoAddress says that the pods' subnet has no free address.
	ErrNoAddress = errclass.New(errdefs.ErrResourceExhausted, "no free address in the pods' subnet")
	// ErrFull says that the network has no room for a further pod, whatever addresses
	// are free.
	ErrFull = errclass.New(errdefs.ErrResourceExhausted, "the pod network is full")
	// ErrAddressTaken says that another pod has the address that was asked for.
	ErrAddressTaken = errclass.New(errdefs.ErrAlreadyExists, "address is in use")
	// ErrNotReady says that the network cannot serve pods now. The error that
	// wraps it says why.
	ErrNotReady = errclass.New(errdefs.ErrUnavailable, "network is not ready")
	// ErrBadPod says that the pod's own values (ID, port mapping) are invalid.
	ErrBadPod = errclass.New(errdefs.ErrInvalidArgument, "bad pod network configuration")
)

// PortMapping publishes a port of a pod.
type PortMapping struct {
	Proto string `json:"proto"` // "tcp", "udp" or "sctp"
	// HostIP is the address to publish on. The zero value means all addresses of
	// both families, 0.0.0.0 all IPv4 and :: all IPv6 addresses.
	HostIP        netip.Addr `json:"hostIP,omitzero"`
	HostPort      uint16     `json:"hostPort"`
	ContainerPort uint16     `json:"containerPort"`
}

// Pod is what a network has to know of a pod sandbox.
type Pod struct {
	ID, Namespace, Name, UID string
	NetNS                    string // path of its pinned network namespace
	// Annotations are the pod's, for CNI plugins that ask for them.
	Annotations map[string]string `json:",omitempty"`
	Ports       []PortMapping
	// IngressRate and EgressRate limit the traffic to and from the pod, in bits
	// per second; 0 is no limit.
	IngressRate, EgressRate uint64

	// Interface is the name of the pod's interface; "" is eth0.
	Interface string
	// Addresses are those that the pod is to have, at most one per family.
	Addresses []netip.Addr
	// MAC is the hardware address of the interface; nil is one of the network's choice.
	MAC net.HardwareAddr
	// NoGateway leaves the pod without a default route by this interface.
	NoGateway bool
	// Services are what else leads to the pod, from pods of the same network.
	Services []Service
	// Names are those of the pod in its networks. Only a pod with names of its own can
	// look up those of others.
	Names []string
	// Attachments are the named networks that the pod is in; none is the network that
	// all pods are on unless they ask for another.
	Attachments []Attachment
	// Resolvers are the servers that are asked for the pod, instead of the uplink's, for
	// names that no pod of its named networks has.
	Resolvers []netip.Addr
}

// Attachment is the membership of a pod in a named network.
type Attachment struct {
	Network   string
	Aliases   []string // further names of the pod, in this network
	Addresses []netip.Addr
	MAC       net.HardwareAddr
	Interface string // "" is one of the network's choice
}

// Service has names of its own, and ports that lead to ports of the pod.
type Service struct {
	Names []string
	Ports []ServicePort
}

// ServicePort is a port of a service and the port of the pod that it leads to.
type ServicePort struct {
	Proto      string // "tcp", "udp" or "sctp"
	Port       uint16
	TargetPort uint16
}

// Result says what Setup made. It is plain data for the pod's record.
type Result struct {
	Interface string       `json:"interface"`          // inside the pod
	MAC       string       `json:"mac,omitempty"`      // of Interface
	IPs       []netip.Addr `json:"ips"`                // primary first
	Gateways  []netip.Addr `json:"gateways,omitempty"` // one per family, in the order of IPs
	MTU       int          `json:"mtu"`                // bytes
	// Routes beside those of the addresses' own subnets, when CNI plugins made
	// them; empty for the built-in bridge, whose Gateways have the default routes.
	Routes []Route `json:"routes,omitempty"`
	// Nameservers know the names of the pods of its networks; none where the pod has no
	// names.
	Nameservers []netip.Addr `json:"nameservers,omitempty"`
	// Others are the pod's links to further networks.
	Others []Link `json:"others,omitempty"`
}

// Link is one of several links of a pod.
type Link struct {
	Network   string       `json:"network"`
	Interface string       `json:"interface"`
	MAC       string       `json:"mac,omitempty"`
	IPs       []netip.Addr `json:"ips"`
}

// Route is one route of a pod.
type Route struct {
	Dst     netip.Prefix `json:"dst"`
	Gateway netip.Addr   `json:"gateway,omitzero"` // zero: directly on the link
}

// Network connects pods. Its methods may be called concurrently.
type Network interface {
	// Setup connects the pod. Idempotent for the same Pod.ID. Nothing is left
	// behind on error but what ends with the pod's network namespace.
	// ErrPortTaken, ErrNoAddress, ErrNotReady, ErrBadPod.
	Setup(ctx context.Context, pod Pod) (Result, error)
	// Teardown frees the pod's address and ports. Idempotent; nil for unknown
	// IDs. The pod's end of the link dies with its network namespace.
	Teardown(ctx context.Context, podID string) error
	// Status returns nil when pods can be connected, else the reason.
	Status(ctx context.Context) error
	// Reconcile is called once at server start, before Setup: it makes or repairs
	// what all pods share, restores what the live pods need and frees everything
	// that belongs to none of them. It goes on after an error and returns all.
	Reconcile(ctx context.Context, live []Pod) error
	// SetPodCIDR sets the subnets of pods made from now on, at most one per
	// family (CRI UpdateRuntimeConfig). Existing pods keep their addresses. On an error
	// nothing changes. ErrBadSubnet.
	SetPodCIDR(ctx context.Context, cidrs []netip.Prefix) error
}
