package nodes

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"github.com/subpod/subpod/netns/tunnel"
)

// Annotations of a node with a tunnel. A kubelet may set those of its own node only.
const (
	AnnotationKey  = "subpod.io/tunnel-key"  // public, as wg(8) has it
	AnnotationPort = "subpod.io/tunnel-port" // UDP, at the node's address
)

// ErrNotYet says that this node does not have yet what a tunnel needs of it.
var ErrNotYet = errors.New("not yet")

// Plan returns where this node's tunnel leads to: to the pods and the address of each
// other node that has a tunnel. Problems say which nodes are left out, or parts of them,
// and why: of two nodes that claim the same address, the older has it. ErrNotYet.
func Plan(self string, nodes []Node) (c tunnel.Config, problems []string, err error) {
	i := slices.IndexFunc(nodes, func(n Node) bool { return n.Metadata.Name == self })
	if i < 0 {
		return c, nil, fmt.Errorf("%w: the cluster has no node %s", ErrNotYet, self)
	}
	var taken []netip.Prefix
	own, err := nodes[i].pods()
	if err != nil {
		return c, nil, err
	}
	if len(own) == 0 {
		return c, nil, fmt.Errorf("%w: the node has no pod CIDR, which the controller manager gives it (--allocate-node-cidrs)", ErrNotYet)
	}
	for _, p := range own {
		c.Sources = append(c.Sources, p.Addr().Next())
	}
	taken = append(taken, own...)
	for _, a := range nodes[i].addresses() {
		taken = append(taken, single(a))
	}
	c.Own = slices.Clone(taken)
	for j, n := range nodes {
		if j == i || n.Metadata.Annotations[AnnotationKey] == "" {
			continue // this one, and those that are reached in another way, or not
		}
		peer, err := n.peer()
		if err != nil {
			problems = append(problems, fmt.Sprintf("no tunnel to the node %s: %v", n.Metadata.Name, err))
			continue
		}
		free := func(p netip.Prefix) bool {
			if k := slices.IndexFunc(taken, p.Overlaps); k >= 0 {
				problems = append(problems, fmt.Sprintf("the node %s claims %s, of which %s is another's already", n.Metadata.Name, p, taken[k]))
				return false
			}
			taken = append(taken, p)
			return true
		}
		peer.Pods = slices.DeleteFunc(peer.Pods, func(p netip.Prefix) bool { return !free(p) })
		peer.Addresses = slices.DeleteFunc(peer.Addresses, func(a netip.Addr) bool { return !free(single(a)) })
		if slices.ContainsFunc(c.Peers, func(o tunnel.Peer) bool { return o.Key == peer.Key }) {
			problems = append(problems, fmt.Sprintf("no tunnel to the node %s: it has the key of another", n.Metadata.Name))
			continue
		}
		c.Peers = append(c.Peers, peer)
	}
	return c, problems, nil
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// peer returns the node as a peer of a tunnel.
func (n Node) peer() (p tunnel.Peer, err error) {
	p.Name = n.Metadata.Name
	if p.Key, err = tunnel.ParsePublicKey(n.Metadata.Annotations[AnnotationKey]); err != nil {
		return p, err
	}
	port, err := strconv.ParseUint(n.Metadata.Annotations[AnnotationPort], 10, 16)
	if err != nil || port == 0 {
		return p, fmt.Errorf("%q is no port", n.Metadata.Annotations[AnnotationPort])
	}
	if p.Pods, err = n.pods(); err != nil {
		return p, err
	}
	p.Addresses = n.addresses()
	if len(p.Addresses) == 0 {
		return p, errors.New("it has no InternalIP")
	}
	p.Endpoint = netip.AddrPortFrom(p.Addresses[0], uint16(port))
	return p, nil
}

// pods returns the subnets of the node's pods.
func (n Node) pods() ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, text := range n.Spec.PodCIDRs {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, err
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

// addresses returns the node's own, by which others reach it.
func (n Node) addresses() []netip.Addr {
	var out []netip.Addr
	for _, a := range n.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Address); err == nil && a.Type == "InternalIP" && ip.IsGlobalUnicast() {
			out = append(out, ip.Unmap())
		}
	}
	return out
}

// Announced reports whether the node has these annotations.
func Announced(self string, nodes []Node, annotations map[string]string) bool {
	i := slices.IndexFunc(nodes, func(n Node) bool { return n.Metadata.Name == self })
	if i < 0 {
		return true // nothing to annotate
	}
	for k, v := range annotations {
		if nodes[i].Metadata.Annotations[k] != v {
			return false
		}
	}
	return true
}
