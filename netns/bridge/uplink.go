package bridge

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/netns"
)

// uplinkTable filters what leaves the node by the uplink's interface.
var uplinkTable = &nftables.Table{Name: "subpod-uplink", Family: nftables.TableFamilyNetdev}

// uplinkAccepts are the frames that may leave by it: ARP, and IPv4 and IPv6 to any address that
// is not the receiver's own. An uplink's program sends what it gets by sockets of the host, for
// which 127.0.0.1, 0.0.0.0, ::1, ::, and the IPv4 ones as ::ffff:a.b.c.d, are the host's
// loopback; no router sends such a packet, but a pod on the node's network can, by a packet
// socket. The kernel's own idea of the protocol is that of whoever wrote the frame: only what
// is in the frame counts, and what cannot be read is dropped.
func uplinkAccepts() [][]expr.Any {
	is := func(op expr.CmpOp, offset uint32, data ...byte) []expr.Any {
		return []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: offset, Len: uint32(len(data))},
			&expr.Cmp{Op: op, Register: 1, Data: data},
		}
	}
	const header, kind, to4, to6 = 14, 12, 16, 24 // Ethernet; its type; destinations
	rule := func(protocol uint16, parts ...[]expr.Any) (all []expr.Any) {
		all = is(expr.CmpOpEq, kind, bigEndian(protocol)...)
		for _, p := range parts {
			all = append(all, p...)
		}
		return append(all, accept()...)
	}
	compatible, mapped := make([]byte, 12), append(make([]byte, 10), 0xff, 0xff) // ::/96, ::ffff:0:0/96
	return [][]expr.Any{
		rule(unix.ETH_P_ARP),
		rule(unix.ETH_P_IP, is(expr.CmpOpNeq, header+to4, 127), is(expr.CmpOpNeq, header+to4, 0)),
		rule(unix.ETH_P_IPV6, is(expr.CmpOpNeq, header+to6, compatible...), is(expr.CmpOpNeq, header+to6, mapped...)),
	}
}

// writeUplinkTable replaces the table. Idempotent. The caller is on the node's thread.
func writeUplinkTable(device string) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	c.AddTable(uplinkTable) // so that there is one to delete
	c.DelTable(uplinkTable)
	c.AddTable(uplinkTable)
	policy := nftables.ChainPolicyDrop
	chain := c.AddChain(&nftables.Chain{
		Name: "out", Table: uplinkTable, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookEgress,
		Priority: nftables.ChainPriorityFilter, Device: device, Policy: &policy,
	})
	for _, exprs := range uplinkAccepts() {
		c.AddRule(&nftables.Rule{Table: uplinkTable, Chain: chain, Exprs: exprs})
	}
	return c.Flush()
}

// GuardUplink keeps what is sent to the host's loopback addresses from leaving by the uplink's
// interface, also when that is made (again) or the table deleted, until stop is called. It fails
// on kernels without netfilter's egress hook (before Linux 5.16).
func GuardUplink(thread *netns.Thread, device string, log *slog.Logger) (stop func(), err error) {
	g := &uplinkGuard{thread: thread, log: log, write: func() error { return writeUplinkTable(device) }}
	if err := g.start(device); err != nil {
		g.stop()
		return nil, fmt.Errorf("filter what leaves by %s: %w", device, err)
	}
	return g.stop, nil
}

// uplinkGuard writes the table again when it may not be where it should.
type uplinkGuard struct {
	thread        *netns.Thread
	log           *slog.Logger
	write         func() error // writes the table, on the thread
	links, tables *os.File     // messages of the kernel
	index         *indexer
}

func (g *uplinkGuard) start(device string) error {
	var last uint32
	err := g.thread.Do(func() (err error) {
		if g.links, err = subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK); err != nil {
			return err
		}
		if g.tables, err = subscribe(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES); err != nil {
			return err
		}
		if g.index, err = newIndexer(device); err != nil {
			return err
		}
		last = g.index.now() // before the table: what is made after it is another one
		return g.made(g.write())
	})
	if err != nil {
		return err
	}
	go g.follow(g.links, g.isNew(last))
	go g.follow(g.tables, g.isGone)
	return nil
}

// made returns why the table was not written: kernels before Linux 6.16 refuse one for an
// interface that is not there, of which there is a message once it is.
func (g *uplinkGuard) made(err error) error {
	if errors.Is(err, unix.ENOENT) && g.index.now() == 0 {
		return nil
	}
	return err
}

func (g *uplinkGuard) stop() {
	for _, f := range []*os.File{g.links, g.tables} {
		if f != nil {
			f.Close()
		}
	}
	if g.index != nil {
		g.index.socket.Close()
	}
}

// isNew returns a function that reports whether the interface is another one than last, or
// than when it was called last. Without one there is nothing to write.
func (g *uplinkGuard) isNew(last uint32) func([]byte) bool {
	return func([]byte) bool {
		now := g.index.now()
		changed := now != 0 && now != last
		last = now
		return changed
	}
}

// isGone reports whether one of the messages says that a table was deleted, and ours is not
// there: its own replacement deletes it, too.
func (g *uplinkGuard) isGone(messages []byte) bool {
	if messages != nil && !suspicious(messages, 0) {
		return false
	}
	gone := false
	err := g.thread.Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		_, err = c.ListTableOfFamily(uplinkTable.Name, uplinkTable.Family)
		gone = err != nil
		return nil
	})
	return err == nil && gone
}

// follow writes the table when a message says so. Where messages were lost (ENOBUFS) it
// looks as well: damaged gets none then.
func (g *uplinkGuard) follow(f *os.File, damaged func(messages []byte) bool) {
	buf := make([]byte, 8<<10) // one that is cut off counts as damage
	for {
		n, err := f.Read(buf)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		messages := buf[:n]
		if err != nil {
			time.Sleep(repairDelay)
			messages = nil
		}
		if !damaged(messages) {
			continue
		}
		if err := g.made(g.thread.Do(g.write)); err != nil && !errors.Is(err, netns.ErrClosed) {
			g.log.Error("pods on the node's network may reach the host's loopback by the uplink", "error", err)
		}
	}
}

// indexer looks an interface of the network namespace up that it was made in, without the
// node's thread and without a list of all: there are two messages for each pod.
type indexer struct {
	socket *os.File
	name   string
}

func newIndexer(name string) (*indexer, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return &indexer{os.NewFile(uintptr(fd), "interfaces"), name}, nil
}

// now returns the interface's index, 0 where there is none.
func (i *indexer) now() uint32 {
	request, err := unix.NewIfreq(i.name)
	if err != nil {
		return 0
	}
	c, err := i.socket.SyscallConn()
	if err != nil {
		return 0
	}
	var failed error
	if err := c.Control(func(fd uintptr) { failed = unix.IoctlIfreq(int(fd), unix.SIOCGIFINDEX, request) }); err != nil || failed != nil {
		return 0
	}
	return request.Uint32()
}
