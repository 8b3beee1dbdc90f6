package bridge

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/subpod/subpod/netns"
	"golang.org/x/sys/unix"
)

// portSecurity is the nftables table of the bridge family that lets a pod's bridge port
// send its own addresses only, whatever the pod's capabilities:
//
//   - frames of ARP, IPv4 and IPv6, without a VLAN tag;
//   - the hardware address of the pod, in the frame, in ARP and in neighbour discovery;
//   - the IP addresses of the pod as sender in ARP, as source of packets, and as the
//     target of neighbour advertisements;
//   - no message of a router (RFC 4861) or of a DHCP server, and no multicast listener
//     report (MLD, RFC 3810): a bridge without a querier floods those to all pods, and
//     with hundreds of them each new one waited until all had processed them.
//
// Its chains never change; a pod is an element of two sets. An address claim, not the
// pod's interface, decides what belongs to it: nothing that a pod does changes the
// rules. The forwarding database has one static entry for each pod (links.secure), so
// that no frame moves a hardware address to another port either.
type portSecurity struct {
	*nft
	possible atomic.Bool // the kernel has what the table needs

	// What the table should contain, by bridge port; used in transactions and by note only.
	senders map[string][]sender
}

// sender is a pair of addresses that a bridge port may send.
type sender struct {
	mac net.HardwareAddr
	ip  netip.Addr
}

// sendersOf returns what a pod with the addresses may send: these and its link-local
// address, with its hardware address.
func sendersOf(mac net.HardwareAddr, addrs []netip.Addr) []sender {
	if len(addrs) == 0 {
		return nil
	}
	out := []sender{{mac, linkLocalOf(mac)}}
	for _, a := range addrs {
		out = append(out, sender{mac, a})
	}
	return out
}

var (
	senderType4 = nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeEtherAddr, nftables.TypeIPAddr)
	senderType6 = nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeEtherAddr, nftables.TypeIP6Addr)
)

func (n naming) securityTable() *nftables.Table {
	return &nftables.Table{Name: n.table + "-ports", Family: nftables.TableFamilyBridge}
}

func securitySets(t *nftables.Table) (senders4, senders6 *nftables.Set) {
	set := func(name string, key nftables.SetDatatype) *nftables.Set {
		return &nftables.Set{Table: t, Name: name, KeyType: key, Concatenation: true}
	}
	return set("senders4", senderType4), set("senders6", senderType6)
}

// table implements filterTable.
func (s *portSecurity) table() *nftables.Table { return s.securityTable() }

// wanted implements filterTable.
func (s *portSecurity) wanted() bool { return s.possible.Load() }

// write implements filterTable. Idempotent.
func (s *portSecurity) write() error {
	// An earlier version's table with the listener reports alone.
	chatter := s.naming.table + "-chatter"
	err := s.transact(func(c *nftables.Conn) error {
		for _, t := range []*nftables.Table{{Name: chatter, Family: nftables.TableFamilyBridge}, s.securityTable()} {
			c.AddTable(t) // so that there is one to delete
			c.DelTable(t)
		}
		t := c.AddTable(s.securityTable())
		senders4, senders6 := securitySets(t)
		if err := errors.Join(c.AddSet(senders4, nil), c.AddSet(senders6, nil)); err != nil {
			return err
		}
		r := portRules{conn: c, table: t, ports: s.veth}
		if err := r.addChains(senders4, senders6); err != nil {
			return err
		}
		var all collected
		for port, senders := range s.senders {
			if err := s.eachSender(port, senders, all.add); err != nil {
				return err
			}
		}
		return all.send(c.SetAddElements)
	})
	// Otherwise the table may be there, or is for the repairer to write.
	s.possible.Store(!lacksBridgeTables(err))
	if err != nil {
		return fmt.Errorf("bind pods to their addresses at the bridge: %w", err)
	}
	return nil
}

// lacksBridgeTables reports whether the kernel has no tables for bridges, or cannot load
// what they need.
func lacksBridgeTables(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.ENOENT)
}

// note adds a port to what the table should contain, for the next write.
func (s *portSecurity) note(port string, senders []sender) {
	s.nft.note(func() { s.senders[port] = senders })
}

// add adds a port to a transaction.
func (s *portSecurity) add(c *nftables.Conn, port string, senders []sender) error {
	s.senders[port] = senders
	if !s.wanted() {
		return nil
	}
	return s.eachSender(port, senders, c.SetAddElements)
}

// remove removes a port. Idempotent.
func (s *portSecurity) remove(port string) error {
	var senders []sender
	drop := func(c *nftables.Conn, some []sender) error {
		if !s.wanted() {
			return nil
		}
		return s.eachSender(port, some, c.SetDeleteElements)
	}
	err := s.transact(func(c *nftables.Conn) error {
		senders = s.senders[port]
		delete(s.senders, port)
		return drop(c, senders)
	})
	if errors.Is(err, unix.ENOENT) {
		// One that is missing fails the whole transaction: take them one by one.
		err = nil
		for _, one := range senders {
			if e := s.transact(func(c *nftables.Conn) error { return drop(c, []sender{one}) }); !errors.Is(e, unix.ENOENT) {
				err = errors.Join(err, e)
			}
		}
	}
	if err != nil {
		if len(senders) > 0 { // they are still there: another call has to find them
			s.note(port, senders)
		}
		return fmt.Errorf("take back the addresses of bridge port %s: %w", port, err)
	}
	return nil
}

// eachSender calls f with the elements of each set.
func (n naming) eachSender(port string, senders []sender, f change) error {
	var in4, in6 []nftables.SetElement
	for _, s := range senders {
		key := make([]byte, unix.IFNAMSIZ, 40)
		copy(key, port)
		key = append(append(key, s.mac...), 0, 0) // each part is filled up to a multiple of 4 bytes
		key = append(key, s.ip.AsSlice()...)
		if s.ip.Is4() {
			in4 = append(in4, nftables.SetElement{Key: key})
		} else {
			in6 = append(in6, nftables.SetElement{Key: key})
		}
	}
	senders4, senders6 := securitySets(n.securityTable())
	if len(in4) > 0 {
		if err := f(senders4, in4); err != nil {
			return err
		}
	}
	if len(in6) > 0 {
		return f(senders6, in6)
	}
	return nil
}

// admit lets the pod's port send its addresses, and with isolation reach its Kubernetes
// namespace, in one transaction. Idempotent.
func (b *Bridge) admit(pod netns.Pod, p *podNet, addrs []netip.Addr) error {
	if b.isolate != nil {
		port := b.isolate.port(pod)
		p.port = &port // noted before it is done
	}
	err := b.nft.transact(func(c *nftables.Conn) error {
		if p.port != nil {
			if err := b.isolate.add(c, *p.port); err != nil {
				return err
			}
		}
		return b.security.add(c, b.nft.link(pod.ID), sendersOf(b.ipam.mac(pod.ID), addrs))
	})
	if err != nil {
		return fmt.Errorf("admit the pod's port to the bridge: %w", err)
	}
	return nil
}

// portRules writes the chains of portSecurity.
type portRules struct {
	conn  *nftables.Conn
	table *nftables.Table
	ports string // begins the names of the pods' bridge ports
}

// Offsets in a frame, by the header that they count from.
const (
	etherSource, etherType         = 6, 12
	arpSenderMAC, arpSenderIP      = 8, 14
	ipv4Source, ipv6Source         = 12, 8
	ipv6PayloadLen, ipv6NextHeader = 4, 6
	ndTarget, ndOption, ndOptMAC   = 8, 24, 26
	udpSource                      = 0
	arpHeaderLen, macLen           = 6, 6
	routerSolicitation             = 133
	neighbourSolicitation          = 135
	neighbourAdvertisement         = 136
	dhcpServer, dhcp6Server        = 67, 547
)

// addChains writes:
//
//	prerouting   frames from pods: to the chain of their protocol; drop all others
//	arp          sender addresses, of the frame as well
//	ip           no DHCP server; source addresses
//	ip6          source addresses; no DHCP server; ICMPv6 to its own chain
//	icmp6        no router, no reports; neighbour discovery
//
// Every chain ends in a drop, and accepts what it has fully understood only. A rule
// whose match reads beyond a packet does not match.
func (r portRules) addChains(senders4, senders6 *nftables.Set) error {
	base := r.conn.AddChain(&nftables.Chain{Name: "prerouting", Table: r.table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRef(-300)})
	protocols := &nftables.Set{Table: r.table, Anonymous: true, Constant: true, IsMap: true, KeyType: nftables.TypeEtherType, DataType: nftables.TypeVerdict}
	var elements []nftables.SetElement
	for _, p := range []struct {
		name string
		kind uint16
	}{{"arp", unix.ETH_P_ARP}, {"ip", unix.ETH_P_IP}, {"ip6", unix.ETH_P_IPV6}} {
		r.conn.AddChain(&nftables.Chain{Name: p.name, Table: r.table})
		elements = append(elements, nftables.SetElement{Key: bigEndian(p.kind), VerdictData: &expr.Verdict{Kind: expr.VerdictJump, Chain: p.name}})
	}
	r.conn.AddChain(&nftables.Chain{Name: "icmp6", Table: r.table})
	if err := r.conn.AddSet(protocols, elements); err != nil {
		return err
	}
	// Of all bridges in the node, ours has the ports with such names.
	ours := []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, equal([]byte(r.ports))}
	// The type that the frame carries: that of a VLAN tag, where there is one.
	r.rule(base.Name, ours, link(etherType, 2), []expr.Any{&expr.Lookup{SourceRegister: 1, DestRegister: 0, IsDestRegSet: true, SetName: protocols.Name, SetID: protocols.ID}})
	r.rule(base.Name, ours, drop())

	// Ethernet, IPv4, lengths 6 and 4: then the offsets below are right.
	r.rule("arp", network(0, arpHeaderLen), []expr.Any{equal([]byte{0, 1, 8, 0, 6, 4})},
		sends(senders4, link(etherSource, macLen), network(arpSenderIP, 4)),
		sends(senders4, network(arpSenderMAC, macLen), network(arpSenderIP, 4)), accept())
	r.rule("arp", drop())

	r.rule("ip", l4(unix.IPPROTO_UDP), transport(udpSource, 2), []expr.Any{equal(bigEndian(dhcpServer))}, drop())
	r.rule("ip", sends(senders4, link(etherSource, macLen), network(ipv4Source, 4)), accept())
	r.rule("ip", drop())

	own := sends(senders6, link(etherSource, macLen), network(ipv6Source, 16))
	not := *own[len(own)-1].(*expr.Lookup)
	not.Invert = true
	r.rule("ip6", own[:len(own)-1], []expr.Any{&not}, drop())
	r.rule("ip6", l4(unix.IPPROTO_UDP), transport(udpSource, 2), []expr.Any{equal(bigEndian(dhcp6Server))}, drop())
	r.rule("ip6", l4(unix.IPPROTO_ICMPV6), jump("icmp6"))
	r.rule("ip6", []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}}, accept()) // it has been found
	r.rule("ip6", drop())
	return r.addICMP6(senders6)
}

// addICMP6 writes the chain for ICMPv6 from own addresses. Of neighbour discovery, it
// accepts the two forms that there are of each message: without options and with the
// link-layer address alone, unfragmented and without extension headers.
func (r portRules) addICMP6(senders *nftables.Set) error {
	// A fragment that is not the first has no type; without the first it is nothing.
	r.rule("icmp6", []expr.Any{
		&expr.Exthdr{Op: expr.ExthdrOpIpv6, Type: unix.IPPROTO_FRAGMENT, Offset: 2, Len: 2, DestRegister: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 2, Mask: []byte{0xff, 0xf8}, Xor: []byte{0, 0}},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{0, 0}},
	}, accept())
	kind := transport(0, 1)
	// Multicast listener queries, reports and done; router solicitation and
	// advertisement; redirect; inverse discovery; report; certification path; multicast
	// routers.
	refused := &nftables.Set{Table: r.table, Anonymous: true, Constant: true, KeyType: nftables.TypeICMP6Type}
	var types []nftables.SetElement
	for _, t := range []byte{130, 131, 132, routerSolicitation, 134, 137, 141, 142, 143, 148, 149, 151, 152, 153} {
		types = append(types, nftables.SetElement{Key: []byte{t}})
	}
	discovery := &nftables.Set{Table: r.table, Anonymous: true, Constant: true, KeyType: nftables.TypeICMP6Type}
	if err := errors.Join(r.conn.AddSet(refused, types),
		r.conn.AddSet(discovery, []nftables.SetElement{{Key: []byte{neighbourSolicitation}}, {Key: []byte{neighbourAdvertisement}}})); err != nil {
		return err
	}
	r.rule("icmp6", kind, []expr.Any{&expr.Lookup{SourceRegister: 1, SetName: refused.Name, SetID: refused.ID}}, drop())
	r.rule("icmp6", kind, []expr.Any{&expr.Lookup{SourceRegister: 1, SetName: discovery.Name, SetID: discovery.ID, Invert: true}}, accept())
	for _, m := range []struct {
		kind, option byte
		ip           []expr.Any // the address that the message binds
	}{
		{neighbourSolicitation, 1, network(ipv6Source, 16)},
		{neighbourAdvertisement, 2, transport(ndTarget, 16)},
	} {
		plain := [][]expr.Any{network(ipv6NextHeader, 1), {equal([]byte{unix.IPPROTO_ICMPV6})}, kind, {equal([]byte{m.kind})}, network(ipv6PayloadLen, 2)}
		r.rule("icmp6", append(plain, []expr.Any{equal([]byte{0, ndOption})},
			sends(senders, link(etherSource, macLen), m.ip), accept())...)
		r.rule("icmp6", append(plain, []expr.Any{equal([]byte{0, ndOption + 8})},
			transport(ndOption, 2), []expr.Any{equal([]byte{m.option, 1})},
			sends(senders, transport(ndOptMAC, macLen), m.ip), accept())...)
	}
	r.rule("icmp6", drop())
	return nil
}

func (r portRules) rule(chain string, parts ...[]expr.Any) {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	r.conn.AddRule(&nftables.Rule{Table: r.table, Chain: &nftables.Chain{Name: chain, Table: r.table}, Exprs: all})
}

// sends matches frames whose port, hardware address and IP address, which the two
// payloads load, are in the set.
func sends(set *nftables.Set, mac, ip []expr.Any) []expr.Any {
	in := func(register uint32, load []expr.Any) *expr.Payload {
		p := *load[0].(*expr.Payload)
		p.DestRegister = register
		return &p
	}
	const name = unix.IFNAMSIZ / 4
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg0},
		in(reg0+name, mac), in(reg0+name+2, ip),
		&expr.Lookup{SourceRegister: reg0, SetName: set.Name, SetID: set.ID},
	}
}

// link, network and transport load a part of a header to register 1.
func link(offset, size uint32) []expr.Any { return load(expr.PayloadBaseLLHeader, offset, size) }
func network(offset, size uint32) []expr.Any {
	return load(expr.PayloadBaseNetworkHeader, offset, size)
}
func transport(offset, size uint32) []expr.Any {
	return load(expr.PayloadBaseTransportHeader, offset, size)
}

func load(base expr.PayloadBase, offset, size uint32) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: 1, Base: base, Offset: offset, Len: size}}
}

func equal(data []byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data} }

// l4 matches packets of a transport protocol.
func l4(protocol byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equal([]byte{protocol})}
}

func accept() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }
func drop() []expr.Any   { return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}} }
func jump(chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}
}

func bigEndian(v uint16) []byte { return []byte{byte(v >> 8), byte(v)} }
