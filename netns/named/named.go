// Package named has the networks that people name, beside the one that all pods are on
// unless they ask for another. Each is a bridge of its own in the node network namespace,
// with its own subnets, and kept apart from the others. It also has the name server by
// which pods of a network find each other.
package named

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/netns/bridge"
	"github.com/subpod/subpod/netns/resolver"
	"github.com/subpod/subpod/pkg/errclass"
)

// Default is the name of the network that all pods are on unless they ask for another.
const Default = "pod"

// Sentinel errors.
var (
	// ErrUnknown says that there is no such network.
	ErrUnknown = errclass.New(errdefs.ErrNotFound, "no such network")
	// ErrExists says that there is a network of the name.
	ErrExists = errclass.New(errdefs.ErrAlreadyExists, "network exists")
	// ErrInUse says that pods are connected to the network.
	ErrInUse = errclass.New(errdefs.ErrFailedPrecondition, "network is in use")
	// ErrBadNetwork says that a network cannot be like that.
	ErrBadNetwork = errclass.New(errdefs.ErrInvalidArgument, "bad network")
	// ErrForeign says that pods are connected by something that has no such networks.
	ErrForeign = errclass.New(errdefs.ErrFailedPrecondition, "no named networks here")
)

// Options configure Networks. All fields but Ports, Bridge, Foreign and Log are needed.
type Options struct {
	// Base connects the pods that name no network. Bridge is what it is, or falls back
	// to; nil for none.
	Base   netns.Network
	Bridge *bridge.Bridge
	// Foreign returns why there are no named networks now: "" when there are.
	Foreign func() string
	Thread  *netns.Thread
	// Congestion is bridge.Options.Congestion of all networks.
	Congestion string
	StateDir   string // the networks
	RunDir     string // their addresses
	Ports      netns.PortForwarder
	Held       Holder
	Isolate    bool // see bridge.Options
	// Upstreams are the servers that know all other names.
	Upstreams func() []netip.Addr
	Log       *slog.Logger
}

// Holder keeps sockets open while there is no server.
type Holder interface {
	// Take returns what an earlier server has left under a name; nil for nothing.
	Take(name string) *os.File
	// Keep leaves a socket for later servers.
	Keep(name string, fd int) error
	// Drop forgets what was left under a name, in its own time. Idempotent.
	Drop(name string) error
	// DropRest forgets, in its own time, what earlier servers have left and this one has not
	// taken.
	DropRest() error
}

// Networks implements netns.Network. While a pod waits for something no lock is held but
// those of the network that it waits for.
type Networks struct {
	Options
	names   *resolver.Names
	speaker *speaker

	creating sync.Mutex // held while a network is created, also across the disk; before mu

	mu       sync.Mutex
	networks map[string]*network // by name
	pods     map[string][]string // the networks of each pod, by ID

	base listeners
}

// network is one named network.
type network struct {
	Config
	making sync.Mutex
	bridge *bridge.Bridge // nil until a pod needs it; changed under making and Networks.mu
	listeners
	removed bool
	// live are the pods that the last server has connected, until there is a bridge: under
	// Networks.mu.
	live []netns.Pod
}

var _ netns.Network = (*Networks)(nil)

// New reads the stored networks. Close it before the thread.
func New(o Options) (*Networks, error) {
	n := &Networks{Options: o, names: &resolver.Names{}, networks: map[string]*network{}, pods: map[string][]string{}}
	if n.Log == nil {
		n.Log = slog.Default()
	}
	n.speaker = &speaker{thread: n.Thread, held: n.Held, log: n.Log}
	n.speaker.server = &resolver.Server{Names: n.names, Dial: n.speaker.dial, Upstreams: o.Upstreams}
	all, err := load(o.StateDir)
	if err != nil {
		n.Log.Error("some networks cannot be used", "error", err)
	}
	for _, c := range all {
		n.networks[c.Name] = &network{Config: c}
	}
	return n, nil
}

// foreign returns ErrForeign where there are no named networks.
func (n *Networks) foreign() error {
	if why := Elsewhere(n); why != "" {
		return fmt.Errorf("%w: %s", ErrForeign, why)
	}
	return nil
}

// Elsewhere returns why pods are not connected by the bridges of n but by CNI plugins; "" where they
// are.
func Elsewhere(n *Networks) string {
	if n.Foreign == nil {
		return ""
	}
	return n.Foreign()
}

// Internal reports whether a network of n leads nowhere else.
func Internal(n *Networks, name string) bool { return n.config(name).Internal }

// Info is a network with the pods that are connected to it, by ID.
type Info struct {
	Config
	Interface string // in the node; "" is Config.Device
	Pods      []string
}

// BaseInfo describes the network that pods are on by default. Its pods are not listed.
func (n *Networks) BaseInfo() Info {
	out := Info{Config: Config{Name: Default, ID: Default}}
	if n.Bridge != nil {
		out.Interface, out.Subnets = n.Bridge.Name(), n.Bridge.Subnets()
	}
	return out
}

// List returns all named networks, by name.
func (n *Networks) List() []Info {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := make([]Info, 0, len(n.networks))
	for _, w := range n.networks {
		out = append(out, Info{Config: w.Config, Pods: podsOf(n.pods, w.Name)})
	}
	slices.SortFunc(out, func(a, b Info) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func podsOf(pods map[string][]string, name string) []string {
	var out []string
	for pod, names := range pods {
		if slices.Contains(names, name) {
			out = append(out, pod)
		}
	}
	slices.Sort(out)
	return out
}

// Create makes a network. Without subnets it gets free ones, one of IPv6 as well if ipv6
// is set. ErrExists, ErrBadNetwork, ErrForeign.
func (n *Networks) Create(c Config, ipv6 bool) (Config, error) {
	if err := n.foreign(); err != nil {
		return Config{}, err
	}
	if err := c.check(); err != nil {
		return Config{}, err
	}
	n.creating.Lock()
	defer n.creating.Unlock()
	n.mu.Lock()
	exists := n.networks[c.Name] != nil
	taken, used := n.taken()
	n.mu.Unlock()
	if exists {
		return Config{}, fmt.Errorf("%w: %s", ErrExists, c.Name)
	}
	var err error
	if c.Subnets, err = chooseSubnets(n.Thread, c.Subnets, ipv6, taken); err != nil {
		return Config{}, err
	}
	for c.Number = 1; used[c.Number]; c.Number++ {
	}
	if c.Number >= maxNetworks {
		return Config{}, fmt.Errorf("%w: there are %d already", ErrBadNetwork, len(used))
	}
	id := make([]byte, 32)
	_, _ = rand.Read(id) // never fails (crypto/rand)
	c.ID, c.Created = hex.EncodeToString(id), time.Now().UTC()
	if err := c.store(n.StateDir); err != nil {
		return Config{}, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.networks[c.Name] = &network{Config: c}
	return c, nil
}

// chooseSubnets returns those of a new network, IPv4 first: the ones that are asked for,
// which nothing else in the node may have, and free ones for families that are missing.
func chooseSubnets(thread *netns.Thread, asked []netip.Prefix, ipv6 bool, taken []netip.Prefix) ([]netip.Prefix, error) {
	out := slices.Clone(asked)
	if len(asked) > 0 {
		connected, err := bridge.ConnectedSubnets(thread)
		if err != nil {
			return nil, err
		}
		others := append(connected, taken...)
		for _, s := range asked {
			if i := slices.IndexFunc(others, s.Overlaps); i >= 0 {
				return nil, fmt.Errorf("%w: subnet %s overlaps %s, which another network or the node itself has", ErrBadNetwork, s, others[i])
			}
		}
	}
	has := func(v4 bool) bool {
		return slices.ContainsFunc(out, func(s netip.Prefix) bool { return s.Addr().Is4() == v4 })
	}
	if !has(true) && !has(false) || ipv6 && !has(false) {
		free, err := bridge.FreeSubnets(thread, ipv6, taken)
		if err != nil {
			return nil, err
		}
		for _, s := range free {
			if !has(s.Addr().Is4()) && (s.Addr().Is6() || len(out) == 0) {
				out = append(out, s)
			}
		}
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	return out, nil
}

// taken returns the subnets and numbers of the networks that there are. The caller holds
// mu.
func (n *Networks) taken() ([]netip.Prefix, map[int]bool) {
	var subnets []netip.Prefix
	used := map[int]bool{}
	if n.Bridge != nil {
		subnets = n.Bridge.Subnets()
	}
	for _, w := range n.networks {
		subnets = append(subnets, w.Subnets...)
		used[w.Number] = true
	}
	return subnets, used
}

// Remove removes a network that no pod is connected to. ErrUnknown, ErrInUse.
func (n *Networks) Remove(name string) error {
	n.mu.Lock()
	w := n.networks[name]
	if w == nil || w.removed { // by another: the name may be another network's soon
		n.mu.Unlock()
		return fmt.Errorf("%w: %s", ErrUnknown, name)
	}
	if pods := podsOf(n.pods, name); len(pods) > 0 {
		n.mu.Unlock()
		return fmt.Errorf("%w: %s, by %d pods: remove them first", ErrInUse, name, len(pods))
	}
	w.removed = true
	n.mu.Unlock()
	err := n.remove(w)
	n.mu.Lock()
	defer n.mu.Unlock()
	if w.removed = false; err == nil {
		delete(n.networks, name)
	}
	return err
}

func (n *Networks) remove(w *network) error {
	w.making.Lock()
	defer w.making.Unlock()
	n.speaker.silence(&w.listeners)
	n.names.Forget(w.Name)
	b := w.bridge
	if b == nil {
		var err error
		if b, err = n.newBridge(w); err != nil {
			return err
		}
	}
	err := b.Delete() // what is left is for another Remove, by a new Bridge
	n.mu.Lock()
	w.bridge = nil
	n.mu.Unlock()
	if err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(n.RunDir, w.Name)); err != nil {
		return fmt.Errorf("remove network %s: %w", w.Name, err)
	}
	if err := os.Remove(filepath.Join(n.StateDir, w.Name+".json")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove network %s: %w", w.Name, err)
	}
	return syncDir(n.StateDir)
}

func (n *Networks) newBridge(w *network) (*bridge.Bridge, error) {
	apart := &bridge.Apart{Internal: w.Internal}
	if n.Bridge != nil {
		apart.From = n.Bridge.Name()
	}
	return bridge.New(bridge.Options{
		Thread: n.Thread, StateDir: filepath.Join(n.RunDir, w.Name), RunDir: filepath.Join(n.RunDir, w.Name),
		Subnets: w.Subnets, Name: w.Device(), MTU: w.MTU, Ports: n.Ports, Table: w.table(), Veth: w.veth(),
		Isolate: n.Isolate, Apart: apart, Range: w.Range, Congestion: n.Congestion, Log: n.Log, Remade: func() { n.listenAgain(w) },
	})
}

// made returns the network's bridge, which it makes for the first pod.
func (n *Networks) made(ctx context.Context, w *network) (*bridge.Bridge, error) {
	w.making.Lock()
	defer w.making.Unlock()
	if w.bridge != nil {
		return w.bridge, nil
	}
	b, err := n.newBridge(w)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	live := slices.Clone(w.live)
	n.mu.Unlock()
	if len(live) > 0 && !w.NoNames {
		b.NoteResolvers()
	}
	err = b.Reconcile(ctx, live)
	if err != nil && b.Status(ctx) != nil {
		return nil, errors.Join(err, b.Close())
	}
	if err != nil {
		n.Log.Warn("the network works, but not all that its pods had could be restored", "network", w.Name, "error", err)
	}
	n.mu.Lock()
	w.bridge, w.live = b, nil
	n.mu.Unlock()
	return b, nil
}
