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
// and why. A node says itself which addresses it has, and can lie: of two nodes that claim
// the same address, the older has it; nobody gets one of the networks that this node's
// interfaces are in, but for those of its own pods and addresses, where others may be, too; and
// pods' subnets are no larger than this node's. ErrNotYet.
func Plan(self string, nodes []Node, networks []netip.Prefix) (c tunnel.Config, problems []string, err error) {
	i := slices.IndexFunc(nodes, func(n Node) bool { return n.Metadata.Name == self })
	if i < 0 {
		return c, nil, fmt.Errorf("%w: the cluster has no node %s", ErrNotYet, self)
	}
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
	c.Own = slices.Clone(own)
	for _, a := range nodes[i].addresses() {
		c.Own = append(c.Own, single(a))
	}
	shared := func(n netip.Prefix) bool { return slices.ContainsFunc(c.Own, n.Overlaps) }
	l := claims{pods: own, taken: slices.Concat(c.Own, slices.DeleteFunc(slices.Clone(networks), shared))}
	for j, n := range nodes {
		if j == i || n.Metadata.Annotations[AnnotationKey] == "" {
			continue // this one, and those that are reached in another way, or not
		}
		peer, err := n.peer()
		if err == nil && slices.ContainsFunc(c.Peers, func(o tunnel.Peer) bool { return o.Key == peer.Key }) {
			err = errors.New("it has the key of another")
		}
		if err != nil {
			l.problems = append(l.problems, fmt.Sprintf("no tunnel to the node %s: %v", n.Metadata.Name, err))
			continue
		}
		c.Peers = append(c.Peers, l.grant(peer))
	}
	return c, l.problems, nil
}

// claims knows who has which addresses.
type claims struct {
	pods     []netip.Prefix // of this node
	taken    []netip.Prefix
	problems []string
}

// grant returns the peer with what it can have of what it claims.
func (l *claims) grant(p tunnel.Peer) tunnel.Peer {
	p.Pods = slices.DeleteFunc(p.Pods, func(pods netip.Prefix) bool { return !l.likeOwn(p.Name, pods) || !l.take(p.Name, pods) })
	p.Addresses = slices.DeleteFunc(p.Addresses, func(a netip.Addr) bool { return !l.take(p.Name, single(a)) })
	return p
}

// likeOwn reports whether a subnet of pods is of a kind that this node has, too.
func (l *claims) likeOwn(node string, p netip.Prefix) bool {
	like := l.pods[0]
	for _, own := range l.pods {
		if own.Addr().Is4() == p.Addr().Is4() {
			like = own
		}
	}
	ok := like.Addr().Is4() == p.Addr().Is4() && p.Bits() >= like.Bits() && p.Addr().IsGlobalUnicast()
	if !ok {
		l.problems = append(l.problems, fmt.Sprintf("the node %s claims %s, which is no subnet such as %s, this node's", node, p, like))
	}
	return ok
}

func (l *claims) take(node string, p netip.Prefix) bool {
	if k := slices.IndexFunc(l.taken, p.Overlaps); k >= 0 {
		l.problems = append(l.problems, fmt.Sprintf("the node %s claims %s, of which %s is another's already", node, p, l.taken[k]))
		return false
	}
	l.taken = append(l.taken, p)
	return true
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

// addresses returns the node's own, by which others reach it: one a family, as kubelets
// have. The text is the node's: what follows a % in it may be anything.
func (n Node) addresses() []netip.Addr {
	var out []netip.Addr
	for _, a := range n.Status.Addresses {
		ip, err := netip.ParseAddr(a.Address)
		if err != nil || a.Type != "InternalIP" || !ip.IsGlobalUnicast() || ip.Zone() != "" {
			continue
		}
		ip = ip.Unmap()
		if !slices.ContainsFunc(out, func(o netip.Addr) bool { return o.Is4() == ip.Is4() }) {
			out = append(out, ip)
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
