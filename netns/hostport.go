package netns

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
)

// HostPort is one published port of a pod, as the real host has to forward it.
type HostPort struct {
	Proto      string     // "tcp" or "udp"
	HostIP     netip.Addr // zero = all addresses of both families
	HostPort   uint16
	TargetIP   netip.Addr // the pod's
	TargetPort uint16
}

// PortForwarder forwards ports of the real host into the node network namespace. Its methods may be called concurrently.
type PortForwarder interface {
	// Expose forwards the port. When exactly this is being forwarded already (by
	// an earlier run of the server), that is adopted. release ends the
	// forwarding and is idempotent. Errors wrap ErrPortTaken where that is the
	// reason. Forwardings that nobody has taken over when all networks are
	// reconciled are ended by whoever made the PortForwarder.
	Expose(ctx context.Context, p HostPort) (release func(context.Context) error, err error)
}

// ForwardsOf returns what a PortForwarder has to do for a pod with these
// addresses. SCTP is not forwarded from the real host.
func ForwardsOf(ports []PortMapping, ips []netip.Addr) []HostPort {
	var out []HostPort
	for _, m := range ports {
		if m.Proto == "sctp" {
			continue
		}
		target := ips[0]
		if m.HostIP.IsValid() {
			i := slices.IndexFunc(ips, func(a netip.Addr) bool { return a.Is4() == m.HostIP.Unmap().Is4() })
			if i >= 0 {
				target = ips[i]
			}
		}
		f := HostPort{m.Proto, m.HostIP.Unmap(), m.HostPort, target, m.ContainerPort}
		if !slices.Contains(out, f) {
			out = append(out, f)
		}
	}
	return out
}

// HostIPs returns the addresses that a mapping names, one per family when it
// names none.
func (m PortMapping) HostIPs() []netip.Addr {
	if !m.HostIP.IsValid() {
		return []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	}
	return []netip.Addr{m.HostIP.Unmap().WithZone("")}
}

// PortClaims records which pod has a host port. The zero value is ready for use.
type PortClaims struct {
	mu    sync.Mutex
	owner map[portKey]portOwner
}

// portKey is what only one pod can have: a host port on an address. The
// unspecified address of a family stands for all of its addresses.
type portKey struct {
	proto  string
	hostIP netip.Addr
	port   uint16
}

type portOwner struct{ id, name string }

// Claim claims all host ports of the pod, or none: ErrPortTaken. Idempotent.
func (c *PortClaims) Claim(pod Pod) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var keys []portKey
	for _, m := range pod.Ports {
		for _, host := range m.HostIPs() {
			k := portKey{m.Proto, host, m.HostPort}
			if o := c.owner[k]; o.id != "" && o.id != pod.ID {
				return fmt.Errorf("%w: %s port %d on %s by pod %s: remove that pod, or give this one another hostPort or hostIP",
					ErrPortTaken, k.proto, k.port, k.hostIP, o.name)
			}
			keys = append(keys, k)
		}
	}
	if c.owner == nil {
		c.owner = map[portKey]portOwner{}
	}
	for _, k := range keys {
		c.owner[k] = portOwner{pod.ID, pod.String()}
	}
	return nil
}

// Free frees the pod's host ports. Idempotent.
func (c *PortClaims) Free(podID string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, o := range c.owner {
		if o.id == podID {
			delete(c.owner, k)
		}
	}
}

// String returns the pod's namespace, name and ID.
func (p Pod) String() string {
	if p.Name == "" {
		return p.ID
	}
	return p.Namespace + "/" + p.Name + " (" + p.ID + ")"
}

// CheckPorts returns ErrBadPod for an invalid port mapping.
func CheckPorts(ports []PortMapping) error {
	for _, m := range ports {
		if m.Proto != "tcp" && m.Proto != "udp" && m.Proto != "sctp" {
			return fmt.Errorf("%w: port mapping: unknown protocol %q, want tcp, udp or sctp", ErrBadPod, m.Proto)
		}
		if m.HostPort == 0 || m.ContainerPort == 0 {
			return fmt.Errorf("%w: port mapping %s %d to %d: ports are 1 to 65535", ErrBadPod, m.Proto, m.HostPort, m.ContainerPort)
		}
	}
	return nil
}
