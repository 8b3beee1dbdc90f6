package bridge

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/subpod/subpod/netns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// settle is how long the watch waits after something has happened, for what
// belongs to it.
const settle = 50 * time.Millisecond

// nftDelTable is the message type of a deleted nftables table (NFT_MSG_DELTABLE of
// linux/netfilter/nf_tables.h, in its subsystem).
const nftDelTable = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_DELTABLE

// watch repairs what all pods share when somebody has broken it: the bridge deleted
// or down, a pod's link taken out of it, the packet filter flushed. It runs from the
// first Reconcile until Close.
type watch struct {
	sockets []*os.File
}

// startWatch subscribes to the kernel's messages about links and tables of the node.
func (b *Bridge) startWatch() error {
	var w watch
	err := b.thread.Do(func() error {
		for _, s := range []struct{ protocol, group int }{
			{unix.NETLINK_ROUTE, unix.RTNLGRP_LINK}, {unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES},
		} {
			f, err := subscribe(s.protocol, s.group)
			if err != nil {
				return err
			}
			w.sockets = append(w.sockets, f)
		}
		return nil
	})
	if err != nil {
		w.close()
		return fmt.Errorf("watch the node's network: %w", err)
	}
	b.watch = &w
	dirty := make(chan struct{}, 1)
	for _, f := range w.sockets {
		go b.listen(f, dirty)
	}
	go b.repairs(dirty)
	return nil
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

func (w *watch) close() {
	for _, f := range w.sockets {
		f.Close()
	}
}

// listen marks the network dirty on each message that may mean damage.
func (b *Bridge) listen(f *os.File, dirty chan<- struct{}) {
	buf := make([]byte, 64<<10)
	for {
		n, err := f.Read(buf)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		// Messages were lost (ENOBUFS): look, whatever they were.
		if err == nil && !b.suspicious(buf[:n]) {
			continue
		}
		select {
		case dirty <- struct{}{}:
		default:
		}
		if err != nil {
			time.Sleep(settle)
		}
	}
}

// suspicious looks at the headers of netlink messages (netlink(7)): a table or the
// bridge deleted, the bridge down, or a link that has changed and is not in it.
func (b *Bridge) suspicious(messages []byte) bool {
	b.mu.Lock()
	bridge := b.ifindex
	b.mu.Unlock()
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

// repairs runs until dirty is never written again; Close ends it through closed.
func (b *Bridge) repairs(dirty <-chan struct{}) {
	for {
		select {
		case <-b.closed:
			return
		case <-dirty:
		}
		time.Sleep(settle)
		if fixed, err := b.repair(); err != nil {
			b.log.Error("the pod network is damaged and could not be repaired: restart the daemon, or look at the node with \"subpod nsenter\"", "error", err)
		} else if len(fixed) > 0 {
			b.log.Warn("the pod network was damaged from outside and is repaired", "repaired", fixed)
		}
	}
}

// repair puts back what is missing, and returns what that was. It leaves alone what
// is there.
func (b *Bridge) repair() (fixed []string, err error) {
	b.repairing.Lock()
	defer b.repairing.Unlock()
	select {
	case <-b.closed:
		return nil, nil
	default:
	}
	made, err := b.repairBridge()
	if err != nil {
		return nil, err
	}
	if made {
		fixed = append(fixed, "bridge "+b.name)
	}
	ports, err := b.repairPorts()
	if ports > 0 {
		fixed = append(fixed, fmt.Sprintf("%d links of pods", ports))
	}
	if err != nil {
		return fixed, err
	}
	flushed := func(t *nftables.Table) bool { return b.rules.present(t) != nil }
	if flushed(table()) || b.isolate && flushed(isolationTable()) || b.quiet.Load() && flushed(chatterTable()) {
		if err := b.repairRules(); err != nil {
			return fixed, err
		}
		fixed = append(fixed, "nftables table "+tableName)
	}
	return fixed, nil
}

func (b *Bridge) repairBridge() (bool, error) {
	link, err := b.links.rt.LinkByName(b.name)
	b.mu.Lock()
	defer b.mu.Unlock()
	if err == nil && link.Attrs().Index == b.ifindex && link.Attrs().RawFlags&unix.IFF_UP != 0 {
		return false, nil
	}
	if link, err = b.bridgeLink(); err != nil {
		return false, err
	}
	b.ifindex = link.Attrs().Index
	if err := b.addGateways(slices.Clone(b.prefixes)); err != nil {
		return false, err
	}
	return true, b.thread.Do(b.sysctls)
}

// repairPorts puts the links of connected pods back into the bridge.
func (b *Bridge) repairPorts() (count int, err error) {
	list, err := netns.Dump(b.links.rt.LinkList)
	if errors.Is(err, netlink.ErrDumpInterrupted) {
		return 0, nil // whatever it was, more messages follow
	}
	if err != nil {
		return 0, fmt.Errorf("list links of the node: %w", err)
	}
	b.mu.Lock()
	bridge := b.ifindex
	b.mu.Unlock()
	links := map[string]netlink.Link{}
	for _, l := range list {
		links[l.Attrs().Name] = l
	}
	var errs []error
	for id := range b.snapshot() {
		l := links[vethName(id)]
		if l == nil || l.Attrs().MasterIndex == bridge {
			continue
		}
		// Not while the pod is being torn down.
		p := b.lockPod(id, false)
		if p == nil {
			continue
		}
		if p.result != nil {
			if err := b.enslave(l, bridge); err != nil && !errors.Is(err, unix.ENODEV) {
				errs = append(errs, fmt.Errorf("put link %s back into bridge %s: %w", l.Attrs().Name, b.name, err))
			} else {
				count++
			}
		}
		p.mu.Unlock()
	}
	return count, errors.Join(errs...)
}

func (b *Bridge) repairRules() error {
	var elements []element
	var ports []isolatedPort
	for id := range b.snapshot() {
		p := b.lockPod(id, false)
		if p == nil {
			continue
		}
		elements = append(elements, p.elements...)
		if p.port != nil {
			ports = append(ports, *p.port)
		}
		p.mu.Unlock()
	}
	b.mu.Lock()
	prefixes := slices.Clone(b.prefixes)
	b.mu.Unlock()
	if err := b.rules.replace(prefixes, elements); err != nil {
		return err
	}
	if b.isolate {
		if err := b.apart.replace(ports); err != nil {
			return err
		}
	}
	if b.quiet.Load() {
		return b.rules.dropChatter()
	}
	return nil
}

// snapshot returns the pods that are known now.
func (b *Bridge) snapshot() map[string]bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	ids := make(map[string]bool, len(b.pods))
	for id := range b.pods {
		ids[id] = true
	}
	return ids
}
