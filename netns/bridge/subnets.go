package bridge

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/netns"
)

// cidrFile holds the subnets of the last SetPodCIDR, one a line.
const cidrFile = "podcidr"

// candidates are the subnets that are tried in this order when none is given.
// 10.0.2.0/24 and fd00::/64 belong to slirp4netns.
func candidates() []netip.Prefix {
	var out []netip.Prefix
	for i := 88; i < 128; i++ {
		out = append(out, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i)}), 16))
	}
	for i := 30; i >= 20; i-- { // for hosts with a route for all of 10.0.0.0/8
		out = append(out, netip.PrefixFrom(netip.AddrFrom4([4]byte{172, byte(i)}), 16))
	}
	for i := 240; i >= 112; i -= 16 {
		out = append(out, netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(i)}), 20))
	}
	for i := 0x88; i < 0x98; i++ {
		out = append(out, netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0x10, 0x00, byte(i)}), 64))
	}
	return out
}

// decideSubnets returns the subnets of new pods: those of SetPodCIDR, else the
// configured ones, else those that the bridge has, else free ones.
func (d *device) decideSubnets(stateDir string, configured []netip.Prefix) ([]netip.Prefix, error) {
	if stored, err := readCIDRs(stateDir); err != nil || len(stored) > 0 {
		return d.usable(stored), err
	}
	if len(configured) > 0 {
		subnets, err := netns.CheckSubnets(configured)
		return d.usable(subnets), err
	}
	have, err := d.prefixes()
	if err != nil {
		return nil, err
	}
	taken, err := d.routes()
	if err != nil {
		return nil, err
	}
	var out []netip.Prefix
	for _, v4 := range []bool{true, false} {
		family := func(p netip.Prefix) bool { return p.Addr().Is4() == v4 }
		if i := slices.IndexFunc(have, family); i >= 0 {
			out = append(out, have[i])
			continue
		}
		i := slices.IndexFunc(candidates(), func(c netip.Prefix) bool {
			return family(c) && !slices.ContainsFunc(taken, c.Overlaps)
		})
		if i >= 0 {
			out = append(out, candidates()[i])
		}
	}
	if out = d.usable(out); len(out) == 0 {
		return nil, errors.New("every subnet that could be used collides with a route of the host: configure one")
	}
	return out, nil
}

// FreeSubnets returns subnets for one more network: of IPv4 and, if ipv6 is set, of IPv6.
// None overlaps a route of the host or of the node, or one of taken.
func FreeSubnets(thread *netns.Thread, ipv6 bool, taken []netip.Prefix) ([]netip.Prefix, error) {
	node, err := openNode(thread)
	if err != nil {
		return nil, err
	}
	defer node.Close()
	routes, err := takenRoutes(node)
	if err != nil {
		return nil, err
	}
	taken = append(routes, taken...)
	var out []netip.Prefix
	for n := range 1 << 12 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(89 + n>>8), byte(n)}), 24)
		if !slices.ContainsFunc(taken, p.Overlaps) {
			out = append(out, p)
			break
		}
	}
	for n := range 1 << 12 {
		p := netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0x10, 0x00, 0x89, byte(n >> 8), byte(n)}), 64)
		if ipv6 && !slices.ContainsFunc(taken, p.Overlaps) {
			out = append(out, p)
			break
		}
	}
	if len(out) == 0 || ipv6 && len(out) < 2 {
		return nil, errors.New("every subnet that could be used collides with a route of the host: name one")
	}
	return out, nil
}

// ConnectedSubnets returns the subnets that the node's interfaces have addresses in: that
// of the uplink, and those of bridges.
func ConnectedSubnets(thread *netns.Thread) ([]netip.Prefix, error) {
	node, err := openNode(thread)
	if err != nil {
		return nil, err
	}
	defer node.Close()
	list, err := addresses(node, nil)
	if err != nil {
		return nil, fmt.Errorf("read the node's addresses: %w", err)
	}
	var out []netip.Prefix
	for _, a := range list {
		out = append(out, prefixOf(a.IPNet).Masked())
	}
	return out, nil
}

// openNode opens netlink in the node network namespace.
func openNode(thread *netns.Thread) (*netlink.Handle, error) {
	var node *netlink.Handle
	err := thread.Do(func() (err error) { node, err = netlink.NewHandle(unix.NETLINK_ROUTE); return err })
	if err != nil {
		return nil, fmt.Errorf("open netlink in the node network namespace: %w", err)
	}
	return node, nil
}

// usable leaves out IPv6 when the kernel lacks it.
func (d *device) usable(subnets []netip.Prefix) []netip.Prefix {
	var off bool
	_ = d.thread.Do(func() error { off = ipv6Off("all"); return nil })
	if !off {
		return subnets
	}
	return slices.DeleteFunc(slices.Clone(subnets), func(p netip.Prefix) bool {
		if p.Addr().Is6() {
			d.log.Warn("no IPv6 in the node network namespace: pods get no IPv6 addresses", "subnet", p)
		}
		return p.Addr().Is6()
	})
}

// routes returns the destinations that the host and the node network namespace
// have routes for. Default routes, and halves and quarters of everything that
// stand for one, do not count.
func (d *device) routes() ([]netip.Prefix, error) { return takenRoutes(d.rt) }

func takenRoutes(node *netlink.Handle) ([]netip.Prefix, error) {
	// The server's own threads are in the host's network namespace.
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("read the host's routes: %w", err)
	}
	defer host.Close()
	var out []netip.Prefix
	for _, h := range []*netlink.Handle{host, node} {
		list, err := routeList(h)
		if err != nil {
			return nil, fmt.Errorf("read routes: %w", err)
		}
		for _, r := range list {
			if r.Dst == nil {
				continue
			}
			if p := prefixOf(r.Dst); p.Bits() >= 4 {
				out = append(out, p)
			}
		}
	}
	return out, nil
}

func readCIDRs(dir string) ([]netip.Prefix, error) {
	text, err := os.ReadFile(filepath.Join(dir, cidrFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the stored subnets: %w", err)
	}
	var out []netip.Prefix
	for _, line := range strings.Fields(string(text)) {
		p, err := netip.ParsePrefix(line)
		if err != nil {
			return nil, fmt.Errorf("read the stored subnets in %s: %w", filepath.Join(dir, cidrFile), err)
		}
		out = append(out, p)
	}
	return out, nil
}

func writeCIDRs(dir string, subnets []netip.Prefix) error {
	var text strings.Builder
	for _, s := range subnets {
		fmt.Fprintln(&text, s)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	path := filepath.Join(dir, cidrFile)
	if err := os.WriteFile(path+".new", []byte(text.String()), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
