package netns

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/subpod/subpod/pkg/errclass"
)

// ErrBadSubnet says that a subnet cannot be used for pods.
var ErrBadSubnet = errclass.New(errdefs.ErrInvalidArgument, "bad subnet")

// CheckSubnets returns the subnets of pods masked and in order, IPv4 first.
// ErrBadSubnet for one that cannot have a gateway and a pod, and for a second one of a
// family.
func CheckSubnets(subnets []netip.Prefix) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range subnets {
		if !s.IsValid() || s.Addr().Is4In6() {
			return nil, fmt.Errorf("%w: %v is not valid", ErrBadSubnet, s)
		}
		s = s.Masked()
		if a := s.Addr(); a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() {
			return nil, fmt.Errorf("%w: %s has no addresses for pods", ErrBadSubnet, s)
		}
		if s.Addr().BitLen()-s.Bits() < 2 {
			return nil, fmt.Errorf("%w: %s is too small for a gateway and a pod", ErrBadSubnet, s)
		}
		if slices.ContainsFunc(out, func(o netip.Prefix) bool { return o.Addr().Is4() == s.Addr().Is4() }) {
			return nil, fmt.Errorf("%w: %s: only one subnet per address family can be used", ErrBadSubnet, s)
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	return out, nil
}
