package control

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"

	"github.com/containerd/errdefs"

	"github.com/subpod/subpod/netns/named"
	"github.com/subpod/subpod/pkg/api"
)

// Networks is what the service needs of named.Networks, which documents the methods.
type Networks interface {
	Create(c named.Config, ipv6 bool) (named.Config, error)
	Remove(name string) error
	List() []named.Info
	BaseInfo() named.Info
}

// errNoNetworks says that the node has no network of its own.
var errNoNetworks = fmt.Errorf("%w: there are no networks here: pods are on the network that the daemon was started in (node.uplink)", errdefs.ErrFailedPrecondition)

// NetworkCreate makes a network.
func (s *service) NetworkCreate(_ context.Context, req *api.NetworkCreateRequest) (*api.Network, error) {
	if s.Named == nil {
		return nil, errNoNetworks
	}
	n := req.Network
	c := named.Config{Name: n.Name, Internal: n.Internal, NoNames: !n.DNS, MTU: n.MTU, Labels: n.Labels, Options: n.Options}
	for _, sub := range n.Subnets {
		p, err := netip.ParsePrefix(sub.Subnet)
		if err != nil {
			return nil, invalid("%w", err)
		}
		p = p.Masked()
		if first := p.Addr().Next(); sub.Gateway != "" && sub.Gateway != first.String() {
			return nil, invalid("gateway %s: the node has the first address of a subnet, %s", sub.Gateway, first)
		}
		if sub.Range != "" {
			if c.Range, err = netip.ParsePrefix(sub.Range); err != nil {
				return nil, invalid("%w", err)
			}
		}
		c.Subnets = append(c.Subnets, p)
	}
	for _, r := range n.Resolvers {
		a, err := netip.ParseAddr(r)
		if err != nil {
			return nil, invalid("%w", err)
		}
		c.Resolvers = append(c.Resolvers, a)
	}
	made, err := s.Named.Create(c, n.IPv6)
	if err != nil {
		return nil, err
	}
	out := networkOf(named.Info{Config: made})
	return &out, nil
}

// NetworkRemove removes a network.
func (s *service) NetworkRemove(ctx context.Context, req *api.NetworkRequest) (*api.Empty, error) {
	if s.Named == nil {
		return nil, errNoNetworks
	}
	if req.Name == api.DefaultNetwork {
		return nil, invalid("%s is the network that pods are on by default; it cannot be removed", req.Name)
	}
	return &api.Empty{}, onceLeft(ctx, s.State, func() error { return s.Named.Remove(req.Name) })
}

// Networks lists all networks.
func (s *service) Networks(context.Context, *api.Empty) (*api.NetworksResponse, error) {
	resp := &api.NetworksResponse{Networks: []api.Network{}}
	if s.Named == nil {
		return resp, nil
	}
	resp.Networks = append(resp.Networks, networkOf(s.Named.BaseInfo()))
	for _, n := range s.Named.List() {
		resp.Networks = append(resp.Networks, networkOf(n))
	}
	return resp, nil
}

func networkOf(n named.Info) api.Network {
	out := api.Network{
		Name: n.Name, ID: n.ID, Created: n.Created, Interface: cmp.Or(n.Interface, n.Device()), Internal: n.Internal, DNS: !n.NoNames,
		MTU: n.MTU, Labels: n.Labels, Options: n.Options, Pods: n.Pods, Subnets: []api.NetworkSubnet{},
	}
	if out.Pods == nil {
		out.Pods = []string{}
	}
	for _, s := range n.Subnets {
		sub := api.NetworkSubnet{Subnet: s.String(), Gateway: s.Masked().Addr().Next().String()}
		if n.Range.IsValid() && s.Contains(n.Range.Addr()) {
			sub.Range = n.Range.String()
		}
		out.IPv6 = out.IPv6 || s.Addr().Is6()
		out.Subnets = append(out.Subnets, sub)
	}
	for _, r := range n.Resolvers {
		out.Resolvers = append(out.Resolvers, r.String())
	}
	return out
}
