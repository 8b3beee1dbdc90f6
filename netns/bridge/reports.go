package bridge

import (
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// dropReports keeps pods' multicast listener reports off the bridge (MLD, RFC 3810).
// Each pod sends several for its IPv6 addresses, and a bridge without a querier floods
// them to all other pods: with hundreds of them, RunPodSandbox became slower. Nobody
// needs them, since such a bridge does not select by groups either. Idempotent.
func (r *rules) dropReports() error {
	table := &nftables.Table{Family: nftables.TableFamilyBridge, Name: tableName + "-reports"}
	return r.transact(func(c *nftables.Conn) error {
		c.AddTable(table)
		c.DelTable(table)
		c.AddTable(table)
		// ICMPv6 types: MLDv1 report and done, MLDv2 report.
		types := &nftables.Set{Table: table, Anonymous: true, Constant: true, KeyType: nftables.TypeICMP6Type}
		if err := c.AddSet(types, []nftables.SetElement{{Key: []byte{131}}, {Key: []byte{132}}, {Key: []byte{143}}}); err != nil {
			return err
		}
		chain := c.AddChain(&nftables.Chain{Name: "prerouting", Table: table, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRef(-300)})
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte(vethPrefix)},
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_ICMPV6}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
			&expr.Lookup{SourceRegister: 1, SetName: types.Name, SetID: types.ID},
			&expr.Verdict{Kind: expr.VerdictDrop},
		}})
		return nil
	})
}
