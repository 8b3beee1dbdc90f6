package bridge

import (
	"errors"
	"fmt"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/subpod/subpod/netns"
	"golang.org/x/sys/unix"
)

// isolation is the nftables table of the bridge family that blocks traffic between
// pods of different Kubernetes namespaces: what a pod sends goes to ports of pods of
// its own namespace only. Ports are identified by the node's end of the pods' links, so
// that no address that a pod takes on can change this. What is routed from the bridge
// back to the bridge is dropped by the other table, except packets to a host port or a
// service.
//
// A namespace is a number, the mark of a frame while it is forwarded. Where
// br_netfilter shows frames to the other table as if they were routed, the mark
// shows that they are not.
type isolation struct {
	*nft

	mu  sync.Mutex
	ids map[string]uint32 // by namespace

	// What the table should contain; used in transactions and by note only.
	ports map[isolatedPort]bool
}

// Bits of the mark.
const (
	// bridgedMark: all namespaces have it.
	bridgedMark = 1 << 31
	// publishedMark: br_netfilter has led the frame to a host port or service on the
	// same bridge, or the answer back.
	publishedMark = 1 << 30
)

// isolatedPort is the bridge port of a pod.
type isolatedPort struct {
	name      string
	namespace uint32
}

// port returns the pod's bridge port and namespace.
func (i *isolation) port(pod netns.Pod) isolatedPort {
	i.mu.Lock()
	defer i.mu.Unlock()
	id := i.ids[pod.Namespace]
	if id == 0 {
		id = bridgedMark | uint32(len(i.ids)+1)
		i.ids[pod.Namespace] = id
	}
	return isolatedPort{i.link(pod.ID), id}
}

func (n naming) isolationTable() *nftables.Table {
	return &nftables.Table{Name: n.table, Family: nftables.TableFamilyBridge}
}

func isolationSets(t *nftables.Table) (namespaces, members *nftables.Set) {
	namespaces = &nftables.Set{Table: t, Name: "namespaces", KeyType: nftables.TypeIFName, DataType: nftables.TypeMark, IsMap: true}
	members = &nftables.Set{Table: t, Name: "members", KeyType: nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeMark), Concatenation: true}
	return namespaces, members
}

func (p isolatedPort) elements() (inMap, inSet []nftables.SetElement) {
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, p.name)
	id := binaryutil.NativeEndian.PutUint32(p.namespace)
	return []nftables.SetElement{{Key: name, Val: id}}, []nftables.SetElement{{Key: append(name[:len(name):len(name)], id...)}}
}

// note adds a port to what the table should contain, for the next write.
func (i *isolation) note(p isolatedPort) { i.nft.note(func() { i.ports[p] = true }) }

// table implements filterTable.
func (i *isolation) table() *nftables.Table { return i.isolationTable() }

// wanted implements filterTable.
func (i *isolation) wanted() bool { return i != nil }

// write makes the table anew with all ports.
func (i *isolation) write() error {
	err := i.transact(func(c *nftables.Conn) error {
		c.AddTable(i.isolationTable())
		c.DelTable(i.isolationTable())
		t := c.AddTable(i.isolationTable())
		namespaces, members := isolationSets(t)
		if err := errors.Join(c.AddSet(namespaces, nil), c.AddSet(members, nil)); err != nil {
			return err
		}
		i.addChain(c, t, namespaces, members)
		var all collected
		for p := range i.ports {
			if err := p.each(i.isolationTable(), all.add); err != nil {
				return err
			}
		}
		return all.send(c.SetAddElements)
	})
	if err != nil {
		return fmt.Errorf("isolate Kubernetes namespaces (network.isolate needs the kernel's nf_tables for bridges): %w", err)
	}
	return nil
}

// addChain writes: accept what was published; clear the sender's mark; mark = namespace
// of the port that it came by; accept for ports of that namespace; drop.
func (i *isolation) addChain(c *nftables.Conn, t *nftables.Table, namespaces, members *nftables.Set) {
	chain := c.AddChain(&nftables.Chain{Name: "forward", Table: t, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityRef(-200)}) // "filter" of bridges
	// Of all bridges in the node, ours has the ports with such names.
	ours := []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte(i.veth)}}
	add := func(exprs ...expr.Any) {
		c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: append(append([]expr.Any{}, ours...), exprs...)})
	}
	add(append(hasMark(publishedMark), &expr.Verdict{Kind: expr.VerdictAccept})...)
	set := &expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true}
	add(&expr.Immediate{Register: 1, Data: make([]byte, 4)}, set)
	add(&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Lookup{SourceRegister: 1, DestRegister: 1, IsDestRegSet: true, SetName: namespaces.Name, SetID: namespaces.ID}, set)
	add(&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: reg0},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg0 + unix.IFNAMSIZ/4},
		&expr.Lookup{SourceRegister: reg0, SetName: members.Name, SetID: members.ID},
		&expr.Verdict{Kind: expr.VerdictAccept})
	add(&expr.Verdict{Kind: expr.VerdictDrop})
}

func (p isolatedPort) each(t *nftables.Table, f change) error {
	namespaces, members := isolationSets(t)
	inMap, inSet := p.elements()
	return errors.Join(f(namespaces, inMap), f(members, inSet))
}

// add allows a pod's port to reach its own namespace, as a part of a transaction.
func (i *isolation) add(c *nftables.Conn, p isolatedPort) error {
	i.ports[p] = true
	return p.each(i.isolationTable(), c.SetAddElements)
}

// remove removes a port. Idempotent.
func (i *isolation) remove(p isolatedPort) error {
	err := i.transact(func(c *nftables.Conn) error {
		delete(i.ports, p)
		return p.each(i.isolationTable(), c.SetDeleteElements)
	})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove the pod from the isolation of its namespace: %w", err)
	}
	return nil
}

// dropIsolation removes the table of an earlier run with isolation.
func dropIsolation(n *nft) error {
	return n.transact(func(c *nftables.Conn) error {
		tables, err := c.ListTablesOfFamily(nftables.TableFamilyBridge)
		for _, t := range tables {
			if t.Name == n.table {
				c.DelTable(t)
			}
		}
		return err
	})
}
