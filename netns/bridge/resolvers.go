package bridge

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// dnsPort is the port of name servers (RFC 1035, 4.2).
const dnsPort = 53

// SetResolvers sets the addresses of the bridge on which a name server answers the
// network's pods. Its packets pass no connection tracking: no host port of a pod leads
// the questions of others to that pod, and no flood of questions fills the node's table.
// Idempotent.
func (b *Bridge) SetResolvers(addrs []netip.Addr) error {
	err := b.rules.transact(func(c *nftables.Conn) error {
		b.rules.resolvers = addrs
		s := newSets(b.rules.podTable())
		for _, x := range []struct {
			set *nftables.Set
			v4  bool
		}{{s.resolvers4, true}, {s.resolvers6, false}} {
			c.FlushSet(x.set)
			if es := addressElements(addrs, x.v4); len(es) > 0 {
				if err := c.SetAddElements(x.set, es); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("set the resolvers of nftables table %s: %w", b.rules.naming.table, err)
	}
	return nil
}

// NoteResolvers makes Reconcile treat the questions of pods as SetResolvers does, already
// before the name server listens.
func (b *Bridge) NoteResolvers() {
	addrs := b.Gateways()
	b.nft.note(func() { b.rules.resolvers = addrs })
}

// addressElements returns the addresses of one family.
func addressElements(addrs []netip.Addr, v4 bool) []nftables.SetElement {
	var out []nftables.SetElement
	for _, a := range addrs {
		if a.Is4() == v4 {
			out = append(out, nftables.SetElement{Key: a.AsSlice()})
		}
	}
	return out
}

// addResolvers writes:
//
//	questions  no connection tracking for questions of pods to a resolver
//	answers    nor for what the resolver sends
func (r *rules) addResolvers(c *nftables.Conn, t *nftables.Table, fams []family) {
	base := func(name string, hook *nftables.ChainHook) *nftables.Chain {
		return c.AddChain(&nftables.Chain{Name: name, Table: t, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityRaw})
	}
	questions, answers := base("questions", nftables.ChainHookPrerouting), base("answers", nftables.ChainHookOutput)
	rule := func(chain *nftables.Chain, parts ...[]expr.Any) {
		var all []expr.Any
		for _, p := range parts {
			all = append(all, p...)
		}
		c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: append(all, &expr.Notrack{})})
	}
	for _, f := range fams {
		for _, protocol := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
			rule(questions, r.fromBridge(), f.is(), f.isResolver(f.dst), l4(protocol), transport(2, 2), []expr.Any{equal(bigEndian(dnsPort))})
			rule(answers, f.is(), f.isResolver(f.src), l4(protocol), transport(0, 2), []expr.Any{equal(bigEndian(dnsPort))})
		}
	}
}

// isResolver matches a resolver's address at the offset in the header.
func (f family) isResolver(offset uint32) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.size},
		&expr.Lookup{SourceRegister: 1, SetName: f.resolvers.Name, SetID: f.resolvers.ID},
	}
}
