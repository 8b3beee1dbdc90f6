package bridge

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/nftables"
	"github.com/subpod/subpod/netns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// repairDelay is how long the repairer waits after a message, for others that
	// belong to the same event.
	repairDelay = 50 * time.Millisecond
	// busyDelay is when the repairer looks again at pods that were being set up or
	// torn down.
	busyDelay = time.Second
)

// nftDelTable is the message type of a deleted nftables table (NFT_MSG_DELTABLE of
// linux/netfilter/nf_tables.h, in its subsystem).
const nftDelTable = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_DELTABLE

// repairer repairs what all pods share when somebody has damaged it: the bridge deleted
// or down, a pod's link taken out of it, the packet filter flushed. It follows the
// kernel's messages from start until close, and never waits for a pod.
type repairer struct {
	thread *netns.Thread
	log    *slog.Logger
	device *device
	links  *links
	pods   *pods
	nft    *nft
	tables []filterTable
	mac    func(podID string) net.HardwareAddr
	meet   func() error  // enters the neighbours on a bridge that was made again
	remade func()        // called when the bridge has been made again; nil does nothing
	dirty  chan struct{} // holds an element when there may be damage

	repairs atomic.Uint64 // how often there was damage

	mu      sync.Mutex // held during a repair
	sockets []*os.File
	closed  chan struct{}
}

func newRepairer(b *Bridge) *repairer {
	return &repairer{
		thread: b.device.thread, log: b.log, device: b.device, links: b.links, pods: &b.pods, nft: b.nft,
		tables: []filterTable{b.rules, b.isolate, b.security}, mac: b.ipam.mac,
		dirty: make(chan struct{}, 1), closed: make(chan struct{}),
	}
}

// start subscribes to the kernel's messages about links and tables of the node.
// Idempotent.
func (r *repairer) start() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.sockets) > 0 || r.isClosed() {
		return nil
	}
	var sockets []*os.File
	err := r.thread.Do(func() error {
		for _, s := range []struct{ protocol, group int }{
			{unix.NETLINK_ROUTE, unix.RTNLGRP_LINK}, {unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES},
		} {
			f, err := subscribe(s.protocol, s.group)
			if err != nil {
				return err
			}
			sockets = append(sockets, f)
		}
		return nil
	})
	if err != nil {
		for _, f := range sockets {
			f.Close()
		}
		return fmt.Errorf("watch the node's network: %w", err)
	}
	r.sockets = sockets
	for _, f := range sockets {
		go r.listen(f)
	}
	go r.run()
	return nil
}

// close ends the repairer: no repair is under way when it returns, and none begins.
func (r *repairer) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.isClosed() {
		return
	}
	close(r.closed)
	for _, f := range r.sockets {
		f.Close()
	}
}

func (r *repairer) isClosed() bool {
	select {
	case <-r.closed:
		return true
	default:
		return false
	}
}

func subscribe(protocol, group int) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (group - 1)}); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "netlink"), nil
}

// listen asks for a repair on each message that may mean damage.
func (r *repairer) listen(f *os.File) {
	buf := make([]byte, 64<<10)
	for {
		n, err := f.Read(buf)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		// Messages were lost (ENOBUFS): look, whatever they were.
		if err == nil && !suspicious(buf[:n], r.device.now().index) {
			continue
		}
		r.look()
		if err != nil {
			time.Sleep(repairDelay)
		}
	}
}

// look asks for a repair.
func (r *repairer) look() {
	select {
	case r.dirty <- struct{}{}:
	default:
	}
}

// suspicious looks at the headers of netlink messages (netlink(7)): a table or the
// bridge deleted, the bridge down, or a link that has changed and is not in it.
func suspicious(messages []byte, bridge int) bool {
	for len(messages) >= unix.SizeofNlMsghdr {
		size := int(binary.NativeEndian.Uint32(messages))
		kind := binary.NativeEndian.Uint16(messages[4:])
		if size < unix.SizeofNlMsghdr || size > len(messages) {
			return true
		}
		body := messages[unix.SizeofNlMsghdr:size]
		switch kind {
		case nftDelTable:
			return true
		case unix.RTM_NEWLINK, unix.RTM_DELLINK:
			if len(body) < unix.SizeofIfInfomsg {
				return true
			}
			index := int(int32(binary.NativeEndian.Uint32(body[4:])))
			up := binary.NativeEndian.Uint32(body[8:])&unix.IFF_UP != 0
			gone := kind == unix.RTM_DELLINK
			// A port that leaves the bridge is an RTM_DELLINK of family AF_BRIDGE.
			if index == bridge && (gone || !up) || gone && body[0] == unix.AF_BRIDGE {
				return true
			}
		}
		messages = messages[min(len(messages), (size+3)&^3):]
	}
	return false
}

// run repairs whenever it is asked to, until close.
func (r *repairer) run() {
	for {
		select {
		case <-r.closed:
			return
		case <-r.dirty:
		}
		time.Sleep(repairDelay)
		_, busy, err := r.repair()
		if err != nil {
			r.log.Error("the pod network is damaged and could not be repaired: restart the daemon, or look at the node with \"subpod nsenter\"", "error", err)
		}
		if busy {
			time.AfterFunc(busyDelay, r.look)
		}
	}
}

// repair restores what is missing and returns what that was, and whether a pod with
// damage was busy. It changes nothing that is there.
func (r *repairer) repair() (fixed []string, busy bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.isClosed() {
		return nil, false, nil
	}
	defer func() {
		if len(fixed) > 0 {
			r.repairs.Add(1)
			r.log.Warn("the pod network was damaged from outside and is repaired", "repaired", fixed)
		}
	}()
	made, err := r.device.repair()
	if err != nil {
		return nil, false, err
	}
	var met error // no reason to leave the rest as it is: the kernel looks for what is missing itself
	if made {
		fixed = append(fixed, "bridge "+r.device.name)
		met = r.meet()
		if r.remade != nil {
			go r.remade()
		}
	}
	ports, busy, err := r.repairLinks()
	if ports > 0 {
		fixed = append(fixed, fmt.Sprintf("%d links of pods", ports))
	}
	if err != nil {
		return fixed, busy, errors.Join(met, err)
	}
	for _, t := range r.tables {
		if !t.wanted() || r.nft.present(t.table()) == nil {
			continue
		}
		if err := t.write(); err != nil {
			return fixed, busy, errors.Join(met, err)
		}
		fixed = append(fixed, "nftables table "+nameOf(t.table()))
	}
	return fixed, busy, met
}

// nameOf returns a table's name as nft(8) has it.
func nameOf(t *nftables.Table) string {
	if t.Family == nftables.TableFamilyBridge {
		return "bridge " + t.Name
	}
	return "inet " + t.Name
}

// repairLinks puts the links of connected pods back into the bridge.
func (r *repairer) repairLinks() (count int, busy bool, err error) {
	list, err := netns.Dump(r.links.rt.LinkList)
	if errors.Is(err, netlink.ErrDumpInterrupted) {
		return 0, false, nil // whatever it was, more messages follow
	}
	if err != nil {
		return 0, false, fmt.Errorf("list links of the node: %w", err)
	}
	bridge := r.device.now().index
	links := map[string]netlink.Link{}
	for _, l := range list {
		links[l.Attrs().Name] = l
	}
	var errs []error
	for _, id := range r.pods.ids() {
		l := links[r.links.names.link(id)]
		if l == nil || l.Attrs().MasterIndex == bridge {
			continue
		}
		p, inUse := r.pods.tryAcquire(id)
		if busy = busy || inUse; p == nil {
			continue
		}
		if p.result != nil { // it is connected
			if err := r.links.enslave(l, bridge, r.mac(id)); err != nil && !errors.Is(err, unix.ENODEV) {
				errs = append(errs, fmt.Errorf("put link %s back into bridge %s: %w", l.Attrs().Name, r.device.name, err))
			} else {
				count++
			}
		}
		p.unlock()
	}
	return count, busy, errors.Join(errs...)
}
