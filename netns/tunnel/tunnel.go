// Package tunnel carries packets between the node network namespaces of several hosts. It
// is WireGuard in user mode, between a TUN device in the node and a UDP socket of the
// host: an ordinary user can have both. A peer is who has its key. What comes from one is
// taken only with a source address of that peer, and what goes there is seen by nobody
// else.
package tunnel

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/time/rate"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

// Device is the name of the TUN device. The bridge masquerades nothing that leaves by it.
const Device = "subpod-nodes"

// DefaultMTU leaves room for WireGuard's headers and IPv6's in Ethernet's 1500 bytes.
const DefaultMTU = 1420

// keepalive is the time between two packets to a peer, in seconds: what WireGuard's
// documentation has for peers behind a firewall. The first is sent at once, so that a peer
// that has known the tunnel before does not wait for an answer from the former one.
const keepalive = 25

// Of the errors of packets the first ones are logged, and then one in a while.
const (
	firstErrors   = 20
	errorInterval = 10 * time.Second
)

// ErrDevice says that the TUN device cannot be made.
var ErrDevice = errors.New("make the tunnel's device")

// Options of a tunnel.
type Options struct {
	// Socket is of the network namespace by which the hosts reach each other. The tunnel
	// closes it.
	Socket *net.UDPConn
	Key    PrivateKey
	MTU    int // bytes; 0 is DefaultMTU
	Log    *slog.Logger
}

// Peer is another node. Its addresses have no zones.
type Peer struct {
	Name     string // for logs
	Key      PublicKey
	Endpoint netip.AddrPort // of its socket: the peer is reached there only
	// Pods are the subnets that only the tunnel leads to.
	Pods []netip.Prefix
	// Addresses are the node's own, which are reached by the tunnel while there is one.
	Addresses []netip.Addr
}

// Config is what a tunnel leads to.
type Config struct {
	// Sources are the node's own addresses in its pods' subnets, one a family: those of
	// what the node itself sends by the tunnel.
	Sources []netip.Addr
	// Own are the node's pods and addresses: what peers send to anything else is dropped.
	Own []netip.Prefix
	// Direct are TCP services that are reached without the tunnel, though they are at an
	// address of a peer: what the peers are learnt from.
	Direct []netip.AddrPort
	Peers  []Peer
}

// Tunnel is a running one. Its methods are for one goroutine.
type Tunnel struct {
	device *device.Device
	nic    *inbound
	socket *net.UDPConn
	log    *slog.Logger
	peers  map[PublicKey]string // what the device has been told of each
	routes routes
}

// Open makes the device in the network namespace of the process, with no peer yet.
// ErrDevice. Close ends it.
func Open(ctx context.Context, o Options) (*Tunnel, error) {
	b, err := newBind(o.Socket)
	if err != nil {
		return nil, err
	}
	if o.MTU == 0 {
		o.MTU = DefaultMTU
	}
	made, err := tun.CreateTUN(Device, o.MTU)
	if err != nil {
		return nil, fmt.Errorf("%w %s: %w: is another tunnel running, or /dev/net/tun not open to everyone?", ErrDevice, Device, err)
	}
	nic := &inbound{Device: made}
	// Each packet that cannot be sent, or that a peer has made so that the kernel does not take
	// it, is one.
	errs := rate.Sometimes{First: firstErrors, Interval: errorInterval}
	dev := device.NewDevice(nic, b, &device.Logger{
		Verbosef: device.DiscardLogf,
		Errorf: func(format string, args ...any) {
			errs.Do(func() { o.Log.Warn("tunnel: " + fmt.Sprintf(format, args...)) })
		},
	})
	// What is for a peer goes to its endpoint, wherever its own packets come from.
	dev.DisableSomeRoamingForBrokenMobileSemantics()
	t := &Tunnel{device: dev, nic: nic, socket: o.Socket, log: o.Log, peers: map[PublicKey]string{}}
	err = dev.IpcSet("private_key=" + hex.EncodeToString(o.Key.key.Bytes()) + "\n")
	if err == nil {
		err = dev.Up()
	}
	if err == nil {
		err = t.routes.begin(ctx)
	}
	if err != nil {
		t.Close()
		return nil, fmt.Errorf("%w %s: %w", ErrDevice, Device, err)
	}
	return t, nil
}

// Close ends the tunnel. Packets to its pods are refused from then on. Idempotent.
func (t *Tunnel) Close() {
	t.device.Close()
	_ = t.socket.Close() // nothing is written to it any more
}

// Wait returns a channel that is closed when the tunnel has ended by itself: its device
// was removed.
func (t *Tunnel) Wait() <-chan struct{} { return t.device.Wait() }

// Set makes the tunnel lead to what c says, and to nothing else. Connections of peers that
// stay go on. Idempotent.
func (t *Tunnel) Set(ctx context.Context, c Config) error {
	own := slices.Clone(c.Own)
	t.nic.own.Store(&own)
	if err := t.setPeers(c.Peers); err != nil {
		return err
	}
	return t.routes.set(ctx, c)
}

func (t *Tunnel) setPeers(peers []Peer) error {
	want := map[PublicKey]string{}
	var change strings.Builder
	for _, p := range peers {
		want[p.Key] = p.uapi()
		if t.peers[p.Key] != want[p.Key] {
			change.WriteString(want[p.Key])
			t.log.Info("tunnel to a node", "node", p.Name, "endpoint", p.Endpoint.String(), "pods", p.Pods)
		}
	}
	for _, key := range slices.SortedFunc(maps.Keys(t.peers), func(a, b PublicKey) int { return strings.Compare(a.hex(), b.hex()) }) {
		if _, ok := want[key]; !ok {
			fmt.Fprintf(&change, "public_key=%s\nremove=true\n", key.hex())
			t.log.Info("no tunnel to a node any more", "key", key.String())
		}
	}
	if change.Len() == 0 {
		return nil
	}
	if err := t.device.IpcSet(change.String()); err != nil {
		return fmt.Errorf("set the tunnel's peers: %w", err)
	}
	t.peers = want
	return nil
}

// uapi returns the peer as the device is told of it.
func (p Peer) uapi() string {
	var b strings.Builder
	fmt.Fprintf(&b, "public_key=%s\nendpoint=%s\npersistent_keepalive_interval=%d\nreplace_allowed_ips=true\n", p.Key.hex(), p.Endpoint, keepalive)
	for _, prefix := range p.prefixes() {
		fmt.Fprintf(&b, "allowed_ip=%s\n", prefix)
	}
	return b.String()
}

// prefixes are the addresses that packets of the peer may come from.
func (p Peer) prefixes() []netip.Prefix {
	out := slices.Clone(p.Pods)
	for _, a := range p.Addresses {
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	return out
}
