// Package bridge is the built-in pod network: a Linux bridge in the node network
// namespace with one veth per pod, addresses from durable claims, masquerading
// to the uplink and host ports by nftables. It needs no other program.
package bridge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/subpod/subpod/netns"
	"golang.org/x/sys/unix"
)

// Options configure a Bridge.
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
	// Isolate blocks traffic between pods of different Kubernetes namespaces, except
	// through host ports and services.
	Isolate bool
	// WaitForPodCIDR makes Status not ready until a SetPodCIDR, of this server or an
	// earlier one.
	WaitForPodCIDR bool
	// Table begins the names of its nftables tables, Veth those of the node's ends of
	// pods' links; "" are those of the one network that is not kept apart. No two
	// bridges of a node may have the same.
	Table, Veth string
	// Apart keeps the network apart from others; nil does not.
	Apart *Apart
	// Range has the addresses that are given to pods that choose none; the zero value
	// has all.
	Range netip.Prefix
	// Congestion is the TCP congestion control of what pods send by their default routes,
	// where an uplink ends their connections; "" is the pod's own.
	Congestion string
	// Remade is called when the bridge was deleted by hand and has been made again.
	Remade func()
	Log    *slog.Logger
}

// Bridge implements netns.Network. No lock of it is held while a pod waits for
// something: each pod has a lock of its own, and what they share is read as a copy.
type Bridge struct {
	log      *slog.Logger
	stateDir string
	nft      *nft
	device   *device
	links    *links
	rules    *rules
	ports    *hostPorts
	isolate  *isolation // nil: pods of all namespaces may talk to each other
	security *portSecurity
	ipam     *ipam
	pods     pods
	repairer *repairer
	waits    bool // Options.WaitForPodCIDR

	ready  atomic.Bool
	close  sync.Once
	shared sync.Mutex // held by whoever changes what all pods share
}

var _ netns.Network = (*Bridge)(nil)

// New reads the address claims and decides on the subnets. It changes nothing in
// the kernel: Reconcile does, and must be called before Setup.
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
	filter := &nft{naming: naming{table: cmp.Or(o.Table, tableName), veth: cmp.Or(o.Veth, vethPrefix)}, thread: o.Thread}
	security := &portSecurity{nft: filter, senders: map[string][]sender{}}
	links, err := openLinks(o, security)
	if err != nil {
		return nil, fmt.Errorf("pod network: %w", err)
	}
	b := &Bridge{
		log: o.Log, stateDir: o.StateDir, waits: o.WaitForPodCIDR, nft: filter, links: links, security: security, ipam: claims,
		device: &device{name: o.Name, names: filter.naming, thread: o.Thread, rt: links.rt, raw: links.raw, log: o.Log, state: deviceState{mtu: o.MTU}},
		rules:  &rules{nft: filter, bridge: o.Name, isolate: o.Isolate, apart: o.Apart, elements: map[element]bool{}},
	}
	if o.Apart != nil {
		b.device.later = int(crc32.ChecksumIEEE([]byte(o.Name))>>8) + 1 // of its own
	}
	b.ports = &hostPorts{thread: o.Thread, rules: b.rules, forward: o.Ports, log: o.Log}
	if o.Isolate {
		b.isolate = &isolation{nft: filter, ids: map[string]uint32{}, ports: map[isolatedPort]bool{}}
	}
	b.repairer = newRepairer(b)
	b.repairer.meet, b.repairer.remade = func() error { return meetAll(b) }, o.Remade
	subnets, err := b.device.decideSubnets(o.StateDir, o.Subnets)
	if err == nil && len(subnets) == 0 {
		err = errors.New("no subnet for pods: there is no IPv6 here, configure an IPv4 one")
	}
	if err != nil {
		links.close()
		return nil, fmt.Errorf("pod network: %w", err)
	}
	claims.limit(o.Range, subnets)
	b.device.update(func(s *deviceState) { s.subnets = subnets })
	return b, nil
}

// Close releases the sockets. Call it before the thread's Close. Pods stay connected.
// Idempotent.
func (b *Bridge) Close() error {
	b.close.Do(func() {
		b.repairer.close()
		b.links.close()
		b.nft.close()
	})
	return nil
}

// Subnets returns the subnets of pods made from now on, IPv4 first.
func (b *Bridge) Subnets() []netip.Prefix { return slices.Clone(b.device.now().subnets) }

// Gateways returns the addresses of the node in all subnets that pods may have addresses
// in, those of new pods first.
func (b *Bridge) Gateways() []netip.Addr {
	s := b.device.now()
	var out []netip.Addr
	for _, p := range append(slices.Clone(s.subnets), s.served...) {
		if gw := gatewayOf(p); !slices.Contains(out, gw) {
			out = append(out, gw)
		}
	}
	return out
}

// Addresses returns the addresses of a pod, IPv4 first; none for one that is not on the
// bridge.
func (b *Bridge) Addresses(podID string) []netip.Addr { return b.ipam.of(podID) }

// Name returns the name of the bridge.
func (b *Bridge) Name() string { return b.device.name }

// Delete removes the bridge with its rules and claims, and closes it. The caller sees to
// it that no pod is connected. Idempotent.
func (b *Bridge) Delete() error {
	b.repairer.close()
	err := errors.Join(b.rules.dropTables(), b.device.remove(), os.RemoveAll(b.ipam.dir))
	return errors.Join(err, b.Close())
}

// InUse reports whether any pod has an address of the bridge's.
func (b *Bridge) InUse() bool { return b.ipam.used() > 0 }

// ErrNoPodCIDR is of Status, where the subnets are waited for. Setup connects pods all the
// same.
var ErrNoPodCIDR = errors.New("network.wait_for_pod_cidr is set, and no kubelet has handed over the node's pod CIDR yet: " +
	"give the node one (kube-controller-manager --allocate-node-cidrs), or take the setting back")

// Status implements netns.Network. ErrNoPodCIDR.
func (b *Bridge) Status(_ context.Context) error {
	if !b.ready.Load() {
		return fmt.Errorf("%w: not reconciled yet", netns.ErrNotReady)
	}
	// The repairer acts on the kernel's messages; this finds damage without one.
	if _, _, err := b.repairer.repair(); err != nil {
		return fmt.Errorf("%w: %w", netns.ErrNotReady, err)
	}
	if !b.waits {
		return nil
	}
	cidrs, err := readCIDRs(b.stateDir)
	if err == nil && len(cidrs) == 0 {
		err = ErrNoPodCIDR
	}
	if err != nil {
		return fmt.Errorf("%w: %w", netns.ErrNotReady, err)
	}
	return nil
}

// SetPodCIDR implements netns.Network. The subnets are stored for later servers.
func (b *Bridge) SetPodCIDR(ctx context.Context, cidrs []netip.Prefix) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	subnets, err := netns.CheckSubnets(cidrs)
	if err != nil {
		return fmt.Errorf("set the pods' subnets: %w", err)
	}
	if len(subnets) == 0 {
		return nil // none given: nothing changes
	}
	usable := b.device.usable(subnets)
	if len(usable) == 0 {
		return fmt.Errorf("set the pods' subnets: %v: there is no IPv6 here", cidrs)
	}
	b.shared.Lock()
	defer b.shared.Unlock()
	if err := b.serve(usable, func() error { return writeCIDRs(b.stateDir, subnets) }); err != nil {
		return fmt.Errorf("set the pods' subnets: %w", err)
	}
	b.device.update(func(s *deviceState) { s.subnets = usable })
	return nil
}

// serve makes the bridge serve more subnets, where it is set up, and calls store. On an
// error, of store as well, it serves the subnets of before. The caller holds shared.
func (b *Bridge) serve(subnets []netip.Prefix, store func() error) (err error) {
	before := b.device.now()
	if before.index == 0 {
		return store()
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.device.removeGateways(before.served), b.rules.setSubnets(before.served))
		}
	}()
	if err := b.device.addGateways(subnets); err != nil {
		return err
	}
	if err := b.rules.setSubnets(b.device.now().served); err != nil {
		return err
	}
	return store()
}
