// Package kubeproxy reads what kube-proxy, in its nftables mode, serves in a network
// namespace: the ports of services that are meant for clients outside of the cluster.
package kubeproxy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Names of kube-proxy's table, and in it of the map of NodePorts, the set of addresses that
// these are at, and the map of all other addresses of services.
const (
	tableName    = "kube-proxy"
	nodePortsMap = "service-nodeports"
	nodeIPsSet   = "nodeport-ips"
	servicesMap  = "service-ips"
)

// Port is a port of services.
type Port struct {
	Proto string // "tcp" or "udp"
	// At is where the network namespace serves it.
	At netip.AddrPort
	// NodePort says that it is the node's at all of its addresses; else it is that of the
	// address only: an external one of the service, or of its load balancer.
	NodePort bool
}

// maxReads bounds how often it is read anew what has changed meanwhile.
const maxReads = 10

// ErrChanging says that the rules have changed each time while they were read.
var ErrChanging = errors.New("the packet filter's rules change faster than they can be read")

// Ports returns the NodePorts, and the ports at external addresses of services that the
// namespace has on an interface, in the calling thread's network namespace. Where there is
// no kube-proxy, there are none. Those for SCTP are left out. ErrChanging.
//
// The kernel gives a set in parts, and of one that changes in between it leaves out, without
// a word, elements that stay: so what counts is what was read between two changes of all
// rules, as nft(8) has it.
func Ports() ([]Port, error) {
	before, err := generation()
	for range maxReads {
		if err != nil {
			return nil, err
		}
		var after uint32
		ports, readErr := read()
		if after, err = generation(); err == nil && after == before {
			return ports, readErr
		}
		before = after
	}
	return nil, errors.Join(ErrChanging, err)
}

// generation returns the number of the last change of any rules.
func generation() (uint32, error) {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN, 0)
	req.AddData(&nl.Nfgenmsg{})
	answers, err := req.Execute(unix.NETLINK_NETFILTER, unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN)
	if err != nil {
		return 0, fmt.Errorf("ask for the generation of the rules: %w", err)
	}
	for _, a := range answers {
		if len(a) < nl.SizeofNfgenmsg {
			continue
		}
		attributes, err := nl.ParseRouteAttrAsMap(a[nl.SizeofNfgenmsg:])
		if err != nil {
			return 0, fmt.Errorf("read the generation of the rules: %w", err)
		}
		if id := attributes[unix.NFTA_GEN_ID].Value; len(id) == 4 {
			return binary.BigEndian.Uint32(id), nil
		}
	}
	return 0, errors.New("the kernel does not report the generation of the rules")
}

// read is Ports of rules that may change meanwhile.
func read() ([]Port, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, err
	}
	tables, err := c.ListTables()
	if err != nil {
		return nil, fmt.Errorf("list nftables tables: %w", err)
	}
	own, err := addresses()
	if err != nil {
		return nil, err
	}
	var out []Port
	for _, t := range tables {
		size := map[nftables.TableFamily]int{nftables.TableFamilyIPv4: 4, nftables.TableFamilyIPv6: 16}[t.Family]
		if t.Name != tableName || size == 0 {
			continue
		}
		ports, err := portsOf(c, t, size, own)
		if err != nil {
			return nil, fmt.Errorf("read what kube-proxy serves: %w", err)
		}
		out = append(out, ports...)
	}
	return out, nil
}

// addresses returns those of the interfaces.
func addresses() ([]netip.Addr, error) {
	found, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, a := range found {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok {
				out = append(out, ip.Unmap())
			}
		}
	}
	return out, nil
}

// portsOf returns those of a table.
func portsOf(c *nftables.Conn, t *nftables.Table, size int, own []netip.Addr) ([]Port, error) {
	nodeIPs, err := elements(c, t, nodeIPsSet)
	if err != nil {
		return nil, err
	}
	nodePorts, err := elements(c, t, nodePortsMap)
	if err != nil {
		return nil, err
	}
	services, err := elements(c, t, servicesMap)
	if err != nil {
		return nil, err
	}
	var out []Port
	if node, ok := first(nodeIPs, size); ok {
		for _, e := range nodePorts {
			if proto, number, ok := decode(e.Key); ok {
				out = append(out, Port{proto, netip.AddrPortFrom(node, number), true})
			}
		}
	}
	for _, e := range services {
		if len(e.Key) < size {
			continue
		}
		ip, _ := netip.AddrFromSlice(e.Key[:size])
		proto, number, ok := decode(e.Key[size:])
		if ok && slices.Contains(own, ip) {
			out = append(out, Port{proto, netip.AddrPortFrom(ip, number), false})
		}
	}
	return out, nil
}

// elements returns those of a set, none of one that is not there.
func elements(c *nftables.Conn, t *nftables.Table, name string) ([]nftables.SetElement, error) {
	s, err := c.GetSetByName(t, name)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return c.GetSetElements(s)
}

// first returns the first address of a set.
func first(es []nftables.SetElement, size int) (netip.Addr, bool) {
	var all []netip.Addr
	for _, e := range es {
		if len(e.Key) == size {
			a, _ := netip.AddrFromSlice(e.Key)
			all = append(all, a)
		}
	}
	if len(all) == 0 {
		return netip.Addr{}, false
	}
	return slices.MinFunc(all, netip.Addr.Compare), true
}

// decode reads protocol . port of a key: each part is filled up to 4 bytes.
func decode(key []byte) (proto string, port uint16, ok bool) {
	if len(key) != 8 {
		return "", 0, false
	}
	proto = map[byte]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp"}[key[0]]
	return proto, uint16(key[4])<<8 | uint16(key[5]), proto != ""
}
