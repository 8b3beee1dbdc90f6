package bridge

import (
	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
)

// Apart keeps a network apart from the others of the node.
type Apart struct {
	// From is the bridge of the network that has no such rules of its own. The others
	// keep out what comes from here themselves.
	From string
	// Internal cuts the network off from everything but its host ports.
	Internal bool
}

// addApart writes the chain of a network that is kept apart. What goes to a pod of it
// by a host port passes, as the answers do; else it is reached from its own bridge
// alone.
//
//	apart  accept what stays on the bridge, and what was published; drop what comes from
//	       anywhere else and is no answer, and what goes to the network of Apart.From
func (r *rules) addApart(c *nftables.Conn, t *nftables.Table) {
	if r.apart == nil {
		return
	}
	chain := c.AddChain(&nftables.Chain{Name: "apart", Table: t, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter})
	rule := func(verdict expr.VerdictKind, parts ...[]expr.Any) {
		var all []expr.Any
		for _, p := range parts {
			all = append(all, p...)
		}
		c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: append(all, &expr.Verdict{Kind: verdict})})
	}
	rule(expr.VerdictAccept, r.fromBridge(), r.toBridge(expr.CmpOpEq))
	rule(expr.VerdictAccept, isDNAT())
	if r.apart.Internal {
		rule(expr.VerdictDrop, r.fromBridge())
	}
	rule(expr.VerdictAccept, r.toBridge(expr.CmpOpEq), isAnswer())
	rule(expr.VerdictDrop, r.toBridge(expr.CmpOpEq))
	rule(expr.VerdictDrop, r.fromBridge(), matchName(expr.MetaKeyOIFNAME, expr.CmpOpEq, r.apart.From))
}

// isAnswer matches packets of connections that others have begun, or that belong to
// them.
func isAnswer() []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Xor: make([]byte, 4),
			Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}
