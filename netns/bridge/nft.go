package bridge

import (
	"fmt"
	"strings"
	"sync"

	"github.com/google/nftables"
	"github.com/subpod/subpod/netns"
	"golang.org/x/sys/unix"
)

// Of the network that all pods are on unless they ask for another.
const (
	tableName  = "subpod"
	vethPrefix = "sp"
)

// naming tells one network's interfaces and tables from those of others in the node.
type naming struct {
	table string // begins the names of its nftables tables
	veth  string // begins the names of the node's ends of its pods' links
}

// link returns the name of the node's end of the pod's link.
func (n naming) link(podID string) string {
	return n.veth + podID[:unix.IFNAMSIZ-1-len(n.veth)]
}

// owns reports whether an interface of the node is the end of a link of the network.
func (n naming) owns(ifname string) bool {
	return strings.HasPrefix(ifname, n.veth) && len(ifname) == unix.IFNAMSIZ-1
}

// nft is the connection to the packet filter of the node network namespace.
type nft struct {
	naming
	thread *netns.Thread

	transacting sync.Mutex     // held during a transaction
	conn        *nftables.Conn // used in transactions only
}

// transact runs f and sends what it collected as one transaction, all or nothing. One
// runs at a time.
func (n *nft) transact(f func(c *nftables.Conn) error) error {
	n.transacting.Lock()
	defer n.transacting.Unlock()
	err := n.open()
	if err != nil {
		return err
	}
	if err = f(n.conn); err == nil {
		err = n.conn.Flush()
	}
	if err != nil {
		// What is still unsent or unread must not meet the next transaction.
		_ = n.conn.CloseLasting()
		n.conn = nil
	}
	return err
}

// open opens the socket, which keeps the namespace of the thread that makes it. There is
// one for all transactions: closing one after a deletion waits for the kernel to free
// what was deleted, 10 ms.
func (n *nft) open() error {
	if n.conn != nil {
		return nil
	}
	return n.thread.Do(func() (err error) {
		n.conn, err = nftables.New(nftables.AsLasting())
		return err
	})
}

// note runs f, which changes what a table should contain, while there is no transaction.
func (n *nft) note(f func()) {
	n.transacting.Lock()
	defer n.transacting.Unlock()
	f()
}

// present returns an error when the table is missing.
func (n *nft) present(t *nftables.Table) error {
	err := n.transact(func(c *nftables.Conn) error {
		_, err := c.ListTableOfFamily(t.Name, t.Family)
		return err
	})
	if err != nil {
		return fmt.Errorf("nftables table %s: %w", t.Name, err)
	}
	return nil
}

// close releases the socket. The rules stay.
func (n *nft) close() {
	n.transacting.Lock()
	defer n.transacting.Unlock()
	if n.conn != nil {
		_ = n.conn.CloseLasting()
		n.conn = nil
	}
}

// filterTable is a table that the network keeps in the packet filter. It knows what
// it should contain, so that it can be written again at any time.
type filterTable interface {
	table() *nftables.Table
	wanted() bool
	write() error
}
