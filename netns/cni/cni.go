// Package cni is the pod network by CNI plugins (https://www.cni.dev/docs/spec):
// what the configuration directories say, run inside the node network namespace.
package cni

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"

	"github.com/subpod/subpod/netns"
)

// DefaultTimeout is how long one call of one plugin may take.
const DefaultTimeout = 30 * time.Second

// Options say where the plugins and their configuration are.
type Options struct {
	Thread   *netns.Thread // required
	StateDir string        // required: what each pod was connected with
	// ConfDirs hold the network configuration: the first directory that has any
	// file ending in .conflist, .conf or .json counts, and in it the first file by
	// name. They are looked at again at each call, so that a change counts at once.
	ConfDirs []string
	// Skip, when set, says of a configuration file that it does not count.
	Skip func(path string) bool
	// BinDirs hold the plugins.
	BinDirs []string
	// Timeout of one call of one plugin; 0 = DefaultTimeout. A plugin that takes
	// longer is killed, with all that it has started.
	Timeout time.Duration
	// Ports publishes host ports on the real host; nil = as the plugins do.
	Ports netns.PortForwarder
	Log   *slog.Logger
}

// Network implements netns.Network.
type Network struct {
	Options
	records records
	cache   string // libcni's
	conf    confCache
	claims  netns.PortClaims

	setting sync.Mutex // held by SetPodCIDR

	mu     sync.Mutex // guards what follows; never held across anything that may wait
	pods   map[string]*podNet
	ranges []netip.Prefix // of SetPodCIDR
}

// podNet is what the network holds for one pod beside its record.
type podNet struct {
	lock     chan struct{} // holds an element while the entry is locked
	users    int           // of this entry, guarded by Network.mu
	releases []func(context.Context) error
}

var _ netns.Network = (*Network)(nil)

// New runs no plugin and needs no configuration yet.
func New(o Options) (*Network, error) {
	if o.Thread == nil || o.StateDir == "" {
		return nil, errors.New("CNI network: the thread and a state directory are required")
	}
	if o.Timeout == 0 {
		o.Timeout = DefaultTimeout
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	n := &Network{
		Options: o,
		records: records(filepath.Join(o.StateDir, "attachments")),
		cache:   filepath.Join(o.StateDir, "cache"),
		pods:    map[string]*podNet{},
	}
	if err := os.MkdirAll(string(n.records), 0o700); err != nil {
		return nil, fmt.Errorf("CNI network: %w", err)
	}
	var err error
	if n.ranges, err = readRanges(filepath.Join(o.StateDir, rangesFile)); err != nil {
		return nil, fmt.Errorf("CNI network: %w", err)
	}
	return n, nil
}

// Configured returns the file that the network's configuration is read from, ""
// when there is none.
func (n *Network) Configured() string {
	file, _ := findConf(n.ConfDirs, n.Skip)
	return file
}

// Status implements netns.Network. Since CNI 1.1, plugins are asked themselves.
func (n *Network) Status(ctx context.Context) error {
	list, err := n.network(ctx)
	if err != nil {
		return err
	}
	x := n.exec("STATUS")
	if err := x.explain(x.lib().GetStatusNetworkList(ctx, list)); err != nil {
		return fmt.Errorf("%w: CNI network %q: %w", netns.ErrNotReady, list.Name, err)
	}
	return nil
}

// network returns the configuration as it is now, or ErrNotReady with the reason.
func (n *Network) network(ctx context.Context) (*libcni.NetworkConfigList, error) {
	list, err := n.conf.load(ctx, n.ConfDirs, n.Skip, func(ctx context.Context, list *libcni.NetworkConfigList) error {
		x := n.exec("VERSION")
		_, err := x.lib().ValidateNetworkList(ctx, list)
		return x.explain(err)
	})
	if err != nil {
		return nil, fmt.Errorf("%w: CNI: %w", netns.ErrNotReady, err)
	}
	return list, nil
}

// acquire returns the pod's entry, locked. It waits for whoever has it until ctx ends.
// release must be called with it.
func (n *Network) acquire(ctx context.Context, id string) (*podNet, error) {
	n.mu.Lock()
	p := n.pods[id]
	if p == nil {
		p = &podNet{lock: make(chan struct{}, 1)}
		n.pods[id] = p
	}
	p.users++
	n.mu.Unlock()
	select {
	case p.lock <- struct{}{}:
		return p, nil
	default:
	}
	select {
	case p.lock <- struct{}{}:
		return p, nil
	case <-ctx.Done():
		n.mu.Lock()
		defer n.mu.Unlock()
		if p.users--; p.users == 0 && len(p.releases) == 0 {
			delete(n.pods, id)
		}
		return nil, fmt.Errorf("network of pod %s: wait for another operation on it: %w", id, ctx.Err())
	}
}

// release unlocks the entry, and forgets one that holds nothing.
func (n *Network) release(id string, p *podNet) {
	n.mu.Lock()
	defer n.mu.Unlock()
	empty := len(p.releases) == 0
	<-p.lock
	if p.users--; p.users == 0 && empty {
		delete(n.pods, id)
	}
}
