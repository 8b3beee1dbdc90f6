package bridge

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/subpod/subpod/netns"
	"golang.org/x/sys/unix"
)

const tableName = "subpod"

// rules are the nftables table of the network. Its chains never change; pods are
// elements of its maps, so that a pod comes and goes in one small transaction
// whatever the number of pods.
type rules struct {
	thread  *netns.Thread
	bridge  string
	isolate bool
	conn    *nftables.Conn // used on the node's thread only
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
	subnets4, subnets6 *nftables.Set // the pods' subnets
	ports4, ports6     *nftables.Set // protocol . host port → pod address . port
	addrs4, addrs6     *nftables.Set // host address . protocol . host port → the same
}

func table() *nftables.Table {
	return &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
}

func newSets(t *nftables.Table) sets {
	subnets := func(name string, key nftables.SetDatatype) *nftables.Set {
		return &nftables.Set{Table: t, Name: name, KeyType: key, Interval: true}
	}
	ports := func(name string, key, data nftables.SetDatatype) *nftables.Set {
		return &nftables.Set{Table: t, Name: name, KeyType: key, DataType: data, IsMap: true, Concatenation: true}
	}
	return sets{
		subnets4: subnets("subnets4", nftables.TypeIPAddr),
		subnets6: subnets("subnets6", nftables.TypeIP6Addr),
		ports4:   ports("ports4", portsType4, destType4),
		ports6:   ports("ports6", portsType4, destType6),
		addrs4:   ports("addresses4", addrsType4, destType4),
		addrs6:   ports("addresses6", addrsType6, destType6),
	}
}

// mapOf returns the map that the element belongs to.
func (s sets) mapOf(e element) *nftables.Set {
	switch {
	case e.hostIP.Is4() && e.hostIP.IsUnspecified():
		return s.ports4
	case e.hostIP.Is4():
		return s.addrs4
	case e.hostIP.IsUnspecified():
		return s.ports6
	}
	return s.addrs6
}

// transact runs f and sends what it collected as one transaction: all or nothing.
func (r *rules) transact(f func(c *nftables.Conn) error) error {
	return r.thread.Do(func() (err error) {
		// One socket for all: closing one after a deletion waits for the kernel to
		// free what was deleted, 10 ms.
		if r.conn == nil {
			if r.conn, err = nftables.New(nftables.AsLasting()); err != nil {
				return err
			}
		}
		if err = f(r.conn); err == nil {
			err = r.conn.Flush()
		}
		if err != nil {
			// What is still unsent or unread must not meet the next transaction.
			_ = r.conn.CloseLasting()
			r.conn = nil
		}
		return err
	})
}

// close releases the socket. The rules stay.
func (r *rules) close() {
	_ = r.thread.Do(func() error {
		if r.conn != nil {
			_ = r.conn.CloseLasting()
			r.conn = nil
		}
		return nil
	})
}

// replace makes the whole table anew, in one step and without a moment when
// rules are missing.
func (r *rules) replace(subnets []netip.Prefix, elements []element) error {
	err := r.transact(func(c *nftables.Conn) error {
		c.AddTable(table()) // so that there is one to delete
		c.DelTable(table())
		t := c.AddTable(table())
		s := newSets(t)
		for _, x := range []struct {
			set  *nftables.Set
			want bool // of IPv4
		}{{s.subnets4, true}, {s.subnets6, false}} {
			if err := c.AddSet(x.set, subnetElements(subnets, x.want)); err != nil {
				return err
			}
		}
		for _, m := range []*nftables.Set{s.ports4, s.ports6, s.addrs4, s.addrs6} {
			if err := c.AddSet(m, nil); err != nil {
				return err
			}
		}
		r.addChains(c, t, s)
		return eachMap(s, elements, c.SetAddElements)
	})
	if err != nil {
		return fmt.Errorf("write nftables table %s: %w", tableName, err)
	}
	return nil
}

// add enters elements. Idempotent.
func (r *rules) add(elements []element) error {
	err := r.transact(func(c *nftables.Conn) error {
		return eachMap(newSets(table()), elements, c.SetAddElements)
	})
	if err != nil {
		return fmt.Errorf("add host ports to nftables table %s: %w", tableName, err)
	}
	return nil
}

// remove takes elements out. Idempotent.
func (r *rules) remove(elements []element) error {
	remove := func(es []element) error {
		return r.transact(func(c *nftables.Conn) error {
			return eachMap(newSets(table()), es, c.SetDeleteElements)
		})
	}
	err := remove(elements)
	if errors.Is(err, unix.ENOENT) {
		// One that is missing fails the whole transaction: take them one by one.
		err = nil
		for _, e := range elements {
			if one := remove([]element{e}); !errors.Is(one, unix.ENOENT) {
				err = errors.Join(err, one)
			}
		}
	}
	if err != nil {
		return fmt.Errorf("remove host ports from nftables table %s: %w", tableName, err)
	}
	return nil
}

// present returns an error when the table is not there.
func (r *rules) present(t *nftables.Table) error {
	err := r.transact(func(c *nftables.Conn) error {
		_, err := c.ListTableOfFamily(t.Name, t.Family)
		return err
	})
	if err != nil {
		return fmt.Errorf("nftables table %s: %w", t.Name, err)
	}
	return nil
}

// eachMap calls f with the elements of each map.
func eachMap(s sets, elements []element, f func(*nftables.Set, []nftables.SetElement) error) error {
	for _, m := range []*nftables.Set{s.ports4, s.ports6, s.addrs4, s.addrs6} {
		var out []nftables.SetElement
		for _, e := range elements {
			if s.mapOf(e) == m {
				out = append(out, encode(e))
			}
		}
		if len(out) == 0 {
			continue
		}
		if err := f(m, out); err != nil {
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

// setSubnets replaces the subnets that are masqueraded.
func (r *rules) setSubnets(subnets []netip.Prefix) error {
	err := r.transact(func(c *nftables.Conn) error {
		s := newSets(table())
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
		return fmt.Errorf("set subnets of nftables table %s: %w", tableName, err)
	}
	return nil
}
