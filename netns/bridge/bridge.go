// Package bridge is the built-in pod network: a Linux bridge in the node network
// namespace with one veth per pod, addresses from durable claims, masquerading
// to the uplink and host ports by nftables. It needs no other program.
package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/subpod/subpod/netns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Options say where and how to make the network.
type Options struct {
	Thread   *netns.Thread // required
	StateDir string        // required: the subnets set by SetPodCIDR
	RunDir   string        // required: address claims, of no use once the pods' namespaces are gone
	// Subnets of pods, at most one per family. Empty: chosen so that they collide
	// with no route of the host or the node.
	Subnets []netip.Prefix
	Name    string // of the bridge; "" = "subpod0"
	MTU     int    // bytes; 0 = that of the uplink, 65520 without one
	// Ports publishes host ports on the real host; nil = in the node network
	// namespace only.
	Ports netns.PortForwarder
	// Isolate keeps pods of different Kubernetes namespaces from talking, except
	// through host ports and services.
	Isolate bool
	Log     *slog.Logger
}

// Bridge implements netns.Network.
type Bridge struct {
	thread   *netns.Thread
	log      *slog.Logger
	forward  netns.PortForwarder
	stateDir string
	name     string
	links    *links
	rules    *rules
	claims   netns.PortClaims
	apart    isolation
	isolate  bool
	quiet    atomic.Bool // the bridge drops chatter
	watch    *watch
	closed   chan struct{}
	close    sync.Once

	repairing sync.Mutex
	ipam      *ipam

	mu       sync.Mutex // guards what follows
	ready    bool
	mtu      int // 0 until Reconcile when it is to be the uplink's
	ifindex  int
	found    int                // the bridge whose gateways pods can find
	current  []netip.Prefix     // subnets of new pods, IPv4 first
	prefixes []netip.Prefix     // all subnets with a gateway address on the bridge
	pods     map[string]*podNet // by pod ID
}

// podNet is what the network holds for one pod.
type podNet struct {
	mu       sync.Mutex
	gone     bool // torn down and no longer in Bridge.pods
	result   *netns.Result
	elements []element
	port     *isolatedPort // nil when pods are not isolated
	releases []func(context.Context) error
}

var _ netns.Network = (*Bridge)(nil)

// New reads the address claims and decides on the subnets. It changes nothing in
// the kernel: that is Reconcile's, which must come before Setup.
func New(o Options) (*Bridge, error) {
	if o.Thread == nil || o.StateDir == "" || o.RunDir == "" {
		return nil, errors.New("pod network: the thread and the directories are required")
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Name == "" {
		o.Name = "subpod0"
	}
	if len(o.Name) >= unix.IFNAMSIZ {
		return nil, fmt.Errorf("pod network: bridge name %q is longer than %d bytes", o.Name, unix.IFNAMSIZ-1)
	}
	claims, err := openIPAM(filepath.Join(o.RunDir, "addresses"))
	if err != nil {
		return nil, fmt.Errorf("pod network: %w", err)
	}
	links, err := openLinks(o.Thread)
	if err != nil {
		return nil, fmt.Errorf("pod network: %w", err)
	}
	b := &Bridge{
		thread: o.Thread, log: o.Log, forward: o.Ports, stateDir: o.StateDir, name: o.Name, mtu: o.MTU,
		links: links, rules: &rules{thread: o.Thread, bridge: o.Name}, ipam: claims,
		pods: map[string]*podNet{}, closed: make(chan struct{}),
	}
	b.apart, b.isolate, b.rules.isolate = isolation{rules: b.rules, ids: map[string]uint32{}}, o.Isolate, o.Isolate
	b.current, err = b.decideSubnets(o.Subnets)
	if err == nil && len(b.current) == 0 {
		err = errors.New("no subnet for pods: there is no IPv6 here, configure an IPv4 one")
	}
	if err != nil {
		links.close()
		return nil, fmt.Errorf("pod network: %w", err)
	}
	return b, nil
}

// Close releases the sockets; it comes before that of the node. Pods stay connected.
func (b *Bridge) Close() error {
	b.close.Do(func() {
		close(b.closed)
		b.repairing.Lock() // none is under way, and none begins
		defer b.repairing.Unlock()
		if b.watch != nil {
			b.watch.close()
		}
		b.links.close()
		b.rules.close()
	})
	return nil
}

// Subnets returns the subnets of pods made from now on, IPv4 first.
func (b *Bridge) Subnets() []netip.Prefix {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.current)
}

// InUse reports whether any pod has an address of the bridge's.
func (b *Bridge) InUse() bool { return b.ipam.used() > 0 }

// Status implements netns.Network.
func (b *Bridge) Status(ctx context.Context) error {
	b.mu.Lock()
	ready := b.ready
	b.mu.Unlock()
	if !ready {
		return fmt.Errorf("%w: not reconciled yet", netns.ErrNotReady)
	}
	// The watch has repaired what it was told of; this is what it was not.
	if _, err := b.repair(); err != nil {
		return fmt.Errorf("%w: %w", netns.ErrNotReady, err)
	}
	return nil
}

// lockPod returns the locked entry of the pod, made when create says so, else nil
// for an unknown pod.
func (b *Bridge) lockPod(id string, create bool) *podNet {
	for {
		b.mu.Lock()
		p := b.pods[id]
		if p == nil {
			if !create {
				b.mu.Unlock()
				return nil
			}
			p = &podNet{}
			b.pods[id] = p
		}
		b.mu.Unlock()
		p.mu.Lock()
		if !p.gone {
			return p
		}
		p.mu.Unlock() // torn down while we waited
	}
}

// links are the netlink sockets of the node network namespace.
type links struct {
	rt  *netlink.Handle
	raw *rawSocket
}

func openLinks(thread *netns.Thread) (*links, error) {
	l := &links{}
	err := thread.Do(func() (err error) {
		// The sockets keep the namespace of the thread that makes them.
		if l.rt, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
			return err
		}
		l.raw, err = openRaw()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open netlink in the node network namespace: %w", err)
	}
	return l, nil
}

func (l *links) close() {
	l.rt.Close()
	l.raw.close()
}
