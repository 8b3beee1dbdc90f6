package control

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/subpod/subpod/netns/named"
	"github.com/subpod/subpod/netns/resolver"
	"github.com/subpod/subpod/pkg/api"
)

// TestNetworkConstants: mechanisms and the service have one name for one thing.
func TestNetworkConstants(t *testing.T) {
	if api.DefaultNetwork != named.Default || api.NetworkDomain != resolver.Domain {
		t.Errorf("%s and %s, %s and %s", api.DefaultNetwork, named.Default, api.NetworkDomain, resolver.Domain)
	}
}

// networks is a named.Networks that makes whatever it is asked for.
type networks struct{ made []named.Info }

func (n *networks) Create(c named.Config, ipv6 bool) (named.Config, error) {
	n.made = append(n.made, named.Info{Config: c})
	return c, nil
}
func (n *networks) Remove(string) error { return named.ErrInUse }
func (n *networks) List() []named.Info  { return n.made }
func (n *networks) BaseInfo() named.Info {
	return named.Info{Config: named.Config{Name: named.Default, ID: named.Default, Subnets: []netip.Prefix{netip.MustParsePrefix("10.88.0.0/16")}}, Interface: "subpod0"}
}

// TestNetworks: what a request says reaches the network, and what is wrong with it is
// said.
func TestNetworks(t *testing.T) {
	fake := &networks{}
	s := &service{Dependencies: &Dependencies{Named: fake}}
	create := func(n api.Network) error {
		_, err := s.NetworkCreate(t.Context(), &api.NetworkCreateRequest{Network: n})
		return err
	}
	sub := func(subnet, gateway, part string) []api.NetworkSubnet {
		return []api.NetworkSubnet{{Subnet: subnet, Gateway: gateway, Range: part}}
	}
	if err := create(api.Network{Name: "a", Internal: true, Resolvers: []string{"9.9.9.9"}, Subnets: sub("10.1.0.0/24", "10.1.0.1", "10.1.0.128/25")}); err != nil {
		t.Fatal(err)
	}
	if c := fake.made[0].Config; c.Name != "a" || !c.Internal || !c.NoNames || c.Range.String() != "10.1.0.128/25" || len(c.Resolvers) != 1 {
		t.Errorf("%+v", c)
	}
	for _, bad := range []api.Network{
		{Name: "b", Subnets: sub("10.1", "", "")}, {Name: "b", Subnets: sub("10.1.0.0/24", "10.1.0.9", "")},
		{Name: "b", Subnets: sub("10.1.0.0/24", "", "x")}, {Name: "b", Resolvers: []string{"x"}},
	} {
		if err := create(bad); !errors.Is(err, errdefs.ErrInvalidArgument) || len(fake.made) != 1 {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	list, err := s.Networks(t.Context(), &api.Empty{})
	if err != nil || len(list.Networks) != 2 || list.Networks[0].Name != "pod" || list.Networks[0].Interface != "subpod0" ||
		list.Networks[1].Subnets[0] != (api.NetworkSubnet{Subnet: "10.1.0.0/24", Gateway: "10.1.0.1", Range: "10.1.0.128/25"}) {
		t.Errorf("%+v, %v", list, err)
	}
	if _, err := s.NetworkRemove(t.Context(), &api.NetworkRequest{Name: "pod"}); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("the default network: %v", err)
	}
	if _, err := s.NetworkRemove(t.Context(), &api.NetworkRequest{Name: "a"}); !errors.Is(err, named.ErrInUse) {
		t.Errorf("one in use: %v", err)
	}
	s = &service{Dependencies: &Dependencies{}}
	if _, err := s.Networks(t.Context(), &api.Empty{}); err != nil {
		t.Errorf("without networks: %v", err)
	}
	if err := create(api.Network{Name: "a"}); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("without networks: %v", err)
	}
}
