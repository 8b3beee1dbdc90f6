package egress

import (
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/subpod/subpod/netns"
)

// near are the addresses that mean something to the pod or the node alone, on each of them.
// 240.0.0.0/4 and fd5e:1271:ce00::/48 are those of services (netns/named), 10.0.2.0/24
// is the uplink's.
var near = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("240.0.0.0/4"), netip.MustParsePrefix("10.0.2.0/24"),
	netip.MustParsePrefix("::/96"), netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("ff00::/8"),
	netip.MustParsePrefix("fd5e:1271:ce00::/48"),
}

// routesInterval is how long the node's routes are taken for unchanged.
const routesInterval = 2 * time.Second

// places knows which addresses are reached by the pod's network, and which by the host's.
type places struct {
	thread *netns.Thread // in the node; nil without one
	more   []netip.Prefix

	mu    sync.Mutex
	nodes []netip.Prefix
	read  time.Time
}

// local reports whether an address is that of a pod, a service, the node, or of a network that
// only the node has a route to. Where the node cannot be asked, every address is.
func (p *places) local(a netip.Addr) bool {
	a = a.Unmap()
	in := func(n netip.Prefix) bool { return n.Contains(a) }
	if slices.ContainsFunc(near, in) || slices.ContainsFunc(p.more, in) {
		return true
	}
	nodes, ok := p.routes()
	return !ok || slices.ContainsFunc(nodes, in)
}

// routes returns the destinations of the node's routes, without the default ones.
func (p *places) routes() ([]netip.Prefix, bool) {
	if p.thread == nil {
		return nil, true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Since(p.read) < routesInterval && p.nodes != nil {
		return p.nodes, true
	}
	found := []netip.Prefix{}
	err := p.thread.Do(func() error {
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			routes, err := netlink.RouteList(nil, family)
			if err != nil {
				return err
			}
			for _, r := range routes {
				if r.Dst == nil {
					continue
				}
				addr, ok := netip.AddrFromSlice(r.Dst.IP)
				if ones, _ := r.Dst.Mask.Size(); ok && ones > 0 {
					found = append(found, netip.PrefixFrom(addr.Unmap(), ones))
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, false
	}
	p.nodes, p.read = found, time.Now()
	return found, true
}
