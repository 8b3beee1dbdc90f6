package bridge

import (
	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// hostPortMark is the bit of the packet mark that says "led to a pod by a host
// port". It is needed for the first packet of a connection only, on its way from
// the DNAT to the masquerading.
const hostPortMark = 0x2000

// Registers of 4 bytes (linux/netfilter/nf_tables.h). Register 1 is the same
// storage as the first four.
const (
	reg0    = unix.NFT_REG32_00
	regMark = unix.NFT_REG32_15
)

// family holds what differs between IPv4 and IPv6 in the rules.
type family struct {
	nfproto      byte
	src, dst     uint32 // offsets of the addresses in the header
	size         uint32 // of an address, bytes
	subnets      *nftables.Set
	ports, addrs *nftables.Set
	services     *nftables.Set
	resolvers    *nftables.Set
	loopback     []byte // network, as long as the mask
	loopbackMask []byte
}

func families(s sets) []family {
	all := make([]byte, 16)
	for i := range all {
		all[i] = 0xff
	}
	one := make([]byte, 16)
	one[15] = 1
	return []family{
		{unix.NFPROTO_IPV4, 12, 16, 4, s.subnets4, s.ports4, s.addrs4, s.services4, s.resolvers4, []byte{127, 0, 0, 0}, []byte{255, 0, 0, 0}},
		{unix.NFPROTO_IPV6, 8, 24, 16, s.subnets6, s.ports6, s.addrs6, s.services6, s.resolvers6, one, all},
	}
}

// addChains writes the static chains:
//
//	hostports    DNAT by the maps; an address of its own comes before "any local address"
//	prerouting   DNAT by the services, for what comes from pods
//	             → hostports, for what comes from pods and the uplink
//	output       → hostports, for processes in the node network namespace
//	postrouting  masquerade: pods to the uplink, not to other nodes; pods and loopback to pods by host ports
//	published    mark what is for a host port or service, for the bridge's own table
//	isolate      drop what is routed from pods to pods and is for no host port or service
//	loopback     drop what uses loopback addresses on the wire, which route_localnet would let in,
//	             and what comes by a pod's link past the bridge
func (r *rules) addChains(c *nftables.Conn, t *nftables.Table, s sets) {
	hostports := c.AddChain(&nftables.Chain{Name: "hostports", Table: t})
	base := func(name string, typ nftables.ChainType, hook *nftables.ChainHook, prio *nftables.ChainPriority) *nftables.Chain {
		return c.AddChain(&nftables.Chain{Name: name, Table: t, Type: typ, Hooknum: hook, Priority: prio})
	}
	prerouting := base("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)
	output := base("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest)
	postrouting := base("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	loopback := base("loopback", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw)

	rule := func(chain *nftables.Chain, parts ...[]expr.Any) {
		var all []expr.Any
		for _, p := range parts {
			all = append(all, p...)
		}
		c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: all})
	}
	jump := []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: "hostports"}}
	fams := families(s)
	for _, f := range fams {
		rule(prerouting, r.fromBridge(), f.is(), f.lookup(f.services, f.size), setMark(hostPortMark), f.dnat())
	}
	rule(prerouting, jump)
	rule(output, jump)
	for _, f := range fams {
		rule(hostports, f.is(), f.lookup(f.addrs, f.size), setMark(hostPortMark), f.dnat())
	}
	for _, f := range fams {
		rule(hostports, f.is(), isLocal(), f.lookup(f.ports, 0), setMark(hostPortMark), f.dnat())
	}
	// Other nodes know the pods of this one by their addresses.
	rule(postrouting, byTunnel(), accept())
	rule(postrouting, byFlannel(), accept())
	masquerade := []expr.Any{&expr.Masq{}}
	for _, f := range fams {
		rule(postrouting, f.is(), f.fromPods(), r.toBridge(expr.CmpOpNeq), masquerade)
		rule(postrouting, f.is(), f.fromPods(), r.toBridge(expr.CmpOpEq), hasMark(hostPortMark), masquerade)
		rule(postrouting, f.is(), f.isLoopback(f.src), r.toBridge(expr.CmpOpEq), masquerade)
	}
	if r.isolate {
		published := base("published", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRef(*nftables.ChainPriorityNATDest+1))
		rule(published, r.fromBridge(), isDNAT(), setMark(publishedMark))
		isolate := base("isolate", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter)
		between := func(verdict expr.VerdictKind, match ...expr.Any) {
			rule(isolate, r.fromBridge(), r.toBridge(expr.CmpOpEq), match, []expr.Any{&expr.Verdict{Kind: verdict}})
		}
		between(expr.VerdictAccept, isDNAT()...)
		between(expr.VerdictAccept, hasMark(bridgedMark)...)
		between(expr.VerdictDrop)
	}
	v4 := fams[0] // the kernel itself drops such IPv6 packets
	rule(loopback, r.fromBridge(), v4.is(), v4.isLoopback(v4.dst), drop())
	rule(loopback, r.fromBridge(), v4.is(), v4.isLoopback(v4.src), drop())
	// The bridge hands frames to 01:80:c2:00:00:0e to the node as they came, through
	// none of its filters.
	rule(loopback, []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, equal([]byte(r.veth))}, drop())
}

func (f family) is() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{f.nfproto}},
	}
}

// isLocal matches packets to an address of the node.
func isLocal() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
}

// lookup looks for the packet in a map and loads what it finds to the first
// registers. The key begins with the destination address when its size is given.
func (f family) lookup(m *nftables.Set, size uint32) []expr.Any {
	var out []expr.Any
	next := uint32(reg0)
	if size > 0 {
		out = append(out, &expr.Payload{DestRegister: next, Base: expr.PayloadBaseNetworkHeader, Offset: f.dst, Len: size})
		next += size / 4
	}
	return append(out,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: next},
		&expr.Payload{DestRegister: next + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: reg0, DestRegister: reg0, IsDestRegSet: true, SetName: m.Name, SetID: m.ID})
}

// dnat leads to the address and port in the first registers.
func (f family) dnat() []expr.Any {
	return []expr.Any{&expr.NAT{
		Type: expr.NATTypeDestNAT, Family: uint32(f.nfproto),
		RegAddrMin: reg0, RegProtoMin: reg0 + f.size/4, Specified: true,
	}}
}

// setMark must leave the registers of the lookup alone.
func setMark(bit uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: regMark},
		&expr.Bitwise{
			SourceRegister: regMark, DestRegister: regMark, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(^bit),
			Xor:  binaryutil.NativeEndian.PutUint32(bit),
		},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: regMark, SourceRegister: true},
	}
}

func hasMark(bit uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{
			SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(bit), Xor: make([]byte, 4),
		},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(bit)},
	}
}

func (f family) fromPods() []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: f.src, Len: f.size},
		&expr.Lookup{SourceRegister: 1, SetName: f.subnets.Name, SetID: f.subnets.ID},
	}
}

// isLoopback matches a loopback address at the offset in the header.
func (f family) isLoopback(offset uint32) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.size},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: f.size, Mask: f.loopbackMask, Xor: make([]byte, f.size)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: f.loopback},
	}
}

func (r *rules) toBridge(op expr.CmpOp) []expr.Any {
	return matchName(expr.MetaKeyOIFNAME, op, r.bridge)
}

// TunnelDevice is the name of the device that leads to the pods of other nodes, where there
// is one (netns/tunnel).
const TunnelDevice = "subpod-nodes"

func byTunnel() []expr.Any {
	return matchName(expr.MetaKeyOIFNAME, expr.CmpOpEq, TunnelDevice)
}

// byFlannel matches the devices that flannel's daemon makes: flannel.1, flannel-v6.1.
func byFlannel() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte("flannel")},
	}
}

func (r *rules) fromBridge() []expr.Any {
	return matchName(expr.MetaKeyIIFNAME, expr.CmpOpEq, r.bridge)
}

func matchName(key expr.MetaKey, op expr.CmpOp, ifname string) []expr.Any {
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, ifname)
	return []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: op, Register: 1, Data: name},
	}
}

// isDNAT matches packets of connections whose destination was changed, in both
// directions (IPS_DST_NAT of linux/netfilter/nf_conntrack_common.h).
func isDNAT() []expr.Any {
	const dstNAT = 1 << 5
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(dstNAT), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}
