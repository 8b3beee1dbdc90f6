package bridge

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"golang.org/x/sys/unix"
)

// rules are the nftables table with masquerading and host ports. Its chains never
// change; pods are elements of its maps, so that a pod comes and goes in one small
// transaction whatever the number of pods.
type rules struct {
	*nft
	bridge  string
	isolate bool
	apart   *Apart // nil: not kept apart from other networks

	// What the table should contain; used in transactions and by note only.
	subnets   []netip.Prefix
	elements  map[element]bool
	resolvers []netip.Addr
}

var (
	portsType4 = nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)
	addrsType4 = nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService)
	addrsType6 = nftables.MustConcatSetType(nftables.TypeIP6Addr, nftables.TypeInetProto, nftables.TypeInetService)
	destType4  = nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)
	destType6  = nftables.MustConcatSetType(nftables.TypeIP6Addr, nftables.TypeInetService)
)

// sets are the table's sets and maps. Names end in the family.
type sets struct {
	subnets4, subnets6     *nftables.Set // the pods' subnets
	ports4, ports6         *nftables.Set // protocol . host port → pod address . port
	addrs4, addrs6         *nftables.Set // host address . protocol . host port → the same
	services4, services6   *nftables.Set // service address . protocol . port → the same
	resolvers4, resolvers6 *nftables.Set // addresses of the name server
}

func (n naming) podTable() *nftables.Table {
	return &nftables.Table{Name: n.table, Family: nftables.TableFamilyINet}
}

func newSets(t *nftables.Table) sets {
	subnets := func(name string, key nftables.SetDatatype) *nftables.Set {
		return &nftables.Set{Table: t, Name: name, KeyType: key, Interval: true}
	}
	ports := func(name string, key, data nftables.SetDatatype) *nftables.Set {
		return &nftables.Set{Table: t, Name: name, KeyType: key, DataType: data, IsMap: true, Concatenation: true}
	}
	return sets{
		subnets4:   subnets("subnets4", nftables.TypeIPAddr),
		subnets6:   subnets("subnets6", nftables.TypeIP6Addr),
		ports4:     ports("ports4", portsType4, destType4),
		ports6:     ports("ports6", portsType4, destType6),
		addrs4:     ports("addresses4", addrsType4, destType4),
		addrs6:     ports("addresses6", addrsType6, destType6),
		services4:  ports("services4", addrsType4, destType4),
		services6:  ports("services6", addrsType6, destType6),
		resolvers4: &nftables.Set{Table: t, Name: "resolvers4", KeyType: nftables.TypeIPAddr},
		resolvers6: &nftables.Set{Table: t, Name: "resolvers6", KeyType: nftables.TypeIP6Addr},
	}
}

// maps returns the maps that pods are elements of.
func (s sets) maps() []*nftables.Set {
	return []*nftables.Set{s.ports4, s.ports6, s.addrs4, s.addrs6, s.services4, s.services6}
}

// mapOf returns the map that the element belongs to.
func (s sets) mapOf(e element) *nftables.Set {
	switch {
	case e.service && e.hostIP.Is4():
		return s.services4
	case e.service:
		return s.services6
	case e.hostIP.Is4() && e.hostIP.IsUnspecified():
		return s.ports4
	case e.hostIP.Is4():
		return s.addrs4
	case e.hostIP.IsUnspecified():
		return s.ports6
	}
	return s.addrs6
}

// table implements filterTable.
func (r *rules) table() *nftables.Table { return r.podTable() }

// wanted implements filterTable.
func (r *rules) wanted() bool { return true }

// write makes the whole table anew, in one step and without a moment when rules are
// missing, but for the host ports beyond thousands of them.
func (r *rules) write() error {
	var first, rest []element
	err := r.transact(func(c *nftables.Conn) error {
		first = slices.Collect(maps.Keys(r.elements))
		n := min(len(first), maxPerTransaction)
		first, rest = first[:n], first[n:]
		c.AddTable(r.podTable()) // so that there is one to delete
		c.DelTable(r.podTable())
		t := c.AddTable(r.podTable())
		s := newSets(t)
		for _, x := range []struct {
			set  *nftables.Set
			want bool // of IPv4
		}{{s.subnets4, true}, {s.subnets6, false}} {
			if err := c.AddSet(x.set, subnetElements(r.subnets, x.want)); err != nil {
				return err
			}
		}
		if err := errors.Join(c.AddSet(s.resolvers4, addressElements(r.resolvers, true)), c.AddSet(s.resolvers6, addressElements(r.resolvers, false))); err != nil {
			return err
		}
		for _, m := range s.maps() {
			if err := c.AddSet(m, nil); err != nil {
				return err
			}
		}
		r.addChains(c, t, s)
		r.addResolvers(c, t, families(s))
		r.addApart(c, t)
		return eachMap(s, first, c.SetAddElements)
	})
	for some := range slices.Chunk(rest, maxPerTransaction) {
		if err == nil {
			err = r.transact(func(c *nftables.Conn) error {
				some = slices.DeleteFunc(some, func(e element) bool { return !r.elements[e] }) // removed meanwhile
				return eachMap(newSets(r.podTable()), some, c.SetAddElements)
			})
		}
	}
	if err != nil {
		return fmt.Errorf("write nftables table %s: %w", r.naming.table, err)
	}
	return nil
}

// note adds elements to what the table should contain, for the next write.
func (r *rules) note(elements []element) { r.nft.note(func() { r.want(elements, true) }) }

// want changes whether elements should be there, in a transaction or by note.
func (r *rules) want(elements []element, there bool) {
	for _, e := range elements {
		if there {
			r.elements[e] = true
		} else {
			delete(r.elements, e)
		}
	}
}

// add adds elements. Idempotent.
func (r *rules) add(elements []element) error {
	for some := range slices.Chunk(elements, maxPerTransaction) {
		err := r.transact(func(c *nftables.Conn) error {
			r.want(some, true)
			return eachMap(newSets(r.podTable()), some, c.SetAddElements)
		})
		if err != nil {
			return fmt.Errorf("add host ports to nftables table %s: %w", r.naming.table, err)
		}
	}
	return nil
}

// remove removes elements. Idempotent.
func (r *rules) remove(elements []element) error {
	remove := func(es []element) error {
		return r.transact(func(c *nftables.Conn) error {
			r.want(es, false)
			return eachMap(newSets(r.podTable()), es, c.SetDeleteElements)
		})
	}
	var err error
	for some := range slices.Chunk(elements, maxPerTransaction) {
		missing := remove(some)
		if !errors.Is(missing, unix.ENOENT) {
			err = errors.Join(err, missing)
			continue
		}
		// One that is missing fails the whole transaction: take them one by one.
		for _, e := range some {
			if one := remove([]element{e}); !errors.Is(one, unix.ENOENT) {
				err = errors.Join(err, one)
			}
		}
	}
	if err != nil {
		return fmt.Errorf("remove host ports from nftables table %s: %w", r.naming.table, err)
	}
	return nil
}

// eachMap calls f with the elements of each map.
func eachMap(s sets, elements []element, f change) error {
	for _, m := range s.maps() {
		var out []nftables.SetElement
		for _, e := range elements {
			if s.mapOf(e) == m {
				out = append(out, encode(e))
			}
		}
		if len(out) == 0 {
			continue
		}
		if err := inParts(f)(m, out); err != nil {
			return err
		}
	}
	return nil
}

// encode writes an element as the kernel has it: each part of a concatenation is
// filled up to a multiple of 4 bytes.
func encode(e element) nftables.SetElement {
	var key []byte
	if !e.hostIP.IsUnspecified() {
		key = append(key, e.hostIP.AsSlice()...)
	}
	key = append(key, protoNumber(e.proto), 0, 0, 0)
	key = append(key, port(e.port)...)
	return nftables.SetElement{Key: key, Val: append(e.target.Addr().AsSlice(), port(e.target.Port())...)}
}

func port(p uint16) []byte { return append(binaryutil.BigEndian.PutUint16(p), 0, 0) }

// subnetElements returns the intervals of one family's subnets.
func subnetElements(subnets []netip.Prefix, v4 bool) []nftables.SetElement {
	var out []nftables.SetElement
	for _, s := range subnets {
		if s.Addr().Is4() != v4 {
			continue
		}
		s = s.Masked()
		out = append(out,
			nftables.SetElement{Key: s.Addr().AsSlice()},
			nftables.SetElement{Key: lastOf(s).Next().AsSlice(), IntervalEnd: true})
	}
	return out
}

// lastOf returns the last address of the subnet.
func lastOf(s netip.Prefix) netip.Addr {
	b := s.Masked().Addr().AsSlice()
	for i := s.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// dropTables removes all tables of the network that there are: a kernel without
// nf_tables_bridge has some of them only, and cannot make others. Idempotent.
func (n *nft) dropTables() error {
	ours := []*nftables.Table{n.podTable(), n.securityTable(), n.isolationTable()}
	err := n.transact(func(c *nftables.Conn) error {
		tables, err := c.ListTables()
		for _, t := range tables {
			if slices.ContainsFunc(ours, func(o *nftables.Table) bool { return o.Name == t.Name && o.Family == t.Family }) {
				c.DelTable(t)
			}
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("remove nftables table %s: %w", n.naming.table, err)
	}
	return nil
}

// noteSubnets sets the subnets that the next write masquerades.
func (r *rules) noteSubnets(subnets []netip.Prefix) { r.nft.note(func() { r.subnets = subnets }) }

// setSubnets replaces the subnets that are masqueraded.
func (r *rules) setSubnets(subnets []netip.Prefix) error {
	err := r.transact(func(c *nftables.Conn) error {
		r.subnets = subnets
		s := newSets(r.podTable())
		for _, x := range []struct {
			set *nftables.Set
			v4  bool
		}{{s.subnets4, true}, {s.subnets6, false}} {
			c.FlushSet(x.set)
			if es := subnetElements(subnets, x.v4); len(es) > 0 {
				if err := c.SetAddElements(x.set, es); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("set subnets of nftables table %s: %w", r.naming.table, err)
	}
	return nil
}
