package bridge

import (
	"fmt"
	"sync/atomic"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// chatter is the nftables table that drops multicast listener reports and router
// messages from pods at the bridge. No pod needs another one's; with hundreds of pods,
// each new one waited until all had processed them. Multicast listener reports (MLD,
// RFC 3810): a bridge without a querier floods them, and does not select by groups
// either. Messages to and from routers (RFC 4861): there is none, and no pod may
// become that of the others.
type chatter struct {
	*nft
	dropped atomic.Bool // the table could be written
}

// table implements filterTable.
func (*chatter) table() *nftables.Table { return chatterTable() }

func chatterTable() *nftables.Table {
	return &nftables.Table{Name: tableName + "-chatter", Family: nftables.TableFamilyBridge}
}

// wanted implements filterTable.
func (d *chatter) wanted() bool { return d.dropped.Load() }

// write implements filterTable. Idempotent.
func (d *chatter) write() error {
	err := d.transact(func(c *nftables.Conn) error {
		c.AddTable(chatterTable())
		c.DelTable(chatterTable())
		table := c.AddTable(chatterTable())
		// ICMPv6 types: MLDv1 report and done, router solicitation and advertisement,
		// MLDv2 report.
		types := &nftables.Set{Table: table, Anonymous: true, Constant: true, KeyType: nftables.TypeICMP6Type}
		if err := c.AddSet(types, []nftables.SetElement{{Key: []byte{131}}, {Key: []byte{132}}, {Key: []byte{133}}, {Key: []byte{134}}, {Key: []byte{143}}}); err != nil {
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
	if err != nil {
		return fmt.Errorf("drop multicast reports of pods at the bridge: %w", err)
	}
	d.dropped.Store(true)
	return nil
}
