package named

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/netns/bridge"
	"github.com/subpod/subpod/netns/resolver"
)

// Setup implements netns.Network. ErrUnknown, ErrForeign.
func (n *Networks) Setup(ctx context.Context, pod netns.Pod) (netns.Result, error) {
	if len(pod.Attachments) == 0 {
		return n.setUpBase(ctx, pod)
	}
	if err := n.foreign(); err != nil {
		return netns.Result{}, err
	}
	if err := n.enter(pod); err != nil {
		return netns.Result{}, err
	}
	result, err := n.attach(ctx, pod)
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		return netns.Result{}, errors.Join(err, n.Teardown(undo, pod.ID))
	}
	return result, nil
}

func (n *Networks) setUpBase(ctx context.Context, pod netns.Pod) (netns.Result, error) {
	result, err := n.Base.Setup(ctx, pod)
	if err != nil || len(pod.Names) == 0 || n.Bridge == nil || len(n.Bridge.Addresses(pod.ID)) == 0 {
		return result, err
	}
	result.Nameservers = n.speaker.listen(Default, n.Bridge, &n.base)
	n.names.Add(n.known(pod, func(string) *bridge.Bridge { return n.Bridge }))
	return result, nil
}

// enter notes the pod's networks, which cannot be removed from then on.
func (n *Networks) enter(pod netns.Pod) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	var names []string
	for _, a := range pod.Attachments {
		w := n.networks[a.Network]
		switch {
		case slices.Contains(names, a.Network):
			return fmt.Errorf("%w: network %s is named twice", netns.ErrBadPod, a.Network)
		case a.Network != Default && (w == nil || w.removed):
			return fmt.Errorf("%w: %s", ErrUnknown, a.Network)
		case a.Network == Default && n.Bridge == nil:
			return fmt.Errorf("%w: network %s is not a bridge", ErrForeign, Default)
		}
		names = append(names, a.Network)
	}
	n.pods[pod.ID] = names
	return nil
}

// attach connects the pod to each of its networks. The first that leads outside has the
// default routes and the host ports.
func (n *Networks) attach(ctx context.Context, pod netns.Pod) (netns.Result, error) {
	var result netns.Result
	bridges := map[string]*bridge.Bridge{}
	var nameservers []netip.Addr
	for i, one := range n.links(pod) {
		name := pod.Attachments[i].Network
		b, l, err := n.bridgeOf(ctx, name)
		if err != nil {
			return netns.Result{}, err
		}
		bridges[name] = b
		var made netns.Result
		if name == Default {
			made, err = n.Base.Setup(ctx, one)
		} else {
			made, err = b.Setup(ctx, one)
		}
		if err != nil {
			return netns.Result{}, fmt.Errorf("network %s: %w", name, err)
		}
		if len(pod.Names) > 0 && !n.config(name).NoNames {
			nameservers = append(nameservers, n.speaker.listen(name, b, l)...)
		}
		if i == 0 {
			result = made
			continue
		}
		result.Gateways = append(result.Gateways, made.Gateways...)
		result.Others = append(result.Others, netns.Link{Network: name, Interface: made.Interface, MAC: made.MAC, IPs: made.IPs})
	}
	result.Nameservers = nameservers
	if len(pod.Names) > 0 {
		n.names.Add(n.known(pod, func(name string) *bridge.Bridge { return bridges[name] }))
	}
	return result, nil
}

// links returns the pod as each of its networks is to connect it.
func (n *Networks) links(pod netns.Pod) []netns.Pod {
	var out []netns.Pod
	routed := false
	for i, a := range pod.Attachments {
		one := pod
		one.Attachments, one.Addresses, one.MAC, one.Interface = nil, a.Addresses, a.MAC, a.Interface
		if one.Interface == "" {
			one.Interface = fmt.Sprintf("eth%d", i)
		}
		one.NoGateway = routed || n.config(a.Network).Internal
		if one.NoGateway {
			one.Ports = nil
		}
		routed = routed || !one.NoGateway
		out = append(out, one)
	}
	if !routed && len(out) > 0 {
		out[0].Ports = pod.Ports // a host port is no way out
	}
	return out
}

// config returns a network as it is stored; the zero value for the default one.
func (n *Networks) config(name string) Config {
	n.mu.Lock()
	defer n.mu.Unlock()
	if w := n.networks[name]; w != nil {
		return w.Config
	}
	return Config{}
}

// bridgeOf returns the bridge of a network, made when missing, and its listeners.
func (n *Networks) bridgeOf(ctx context.Context, name string) (*bridge.Bridge, *listeners, error) {
	if name == Default {
		return n.Bridge, &n.base, nil
	}
	n.mu.Lock()
	w := n.networks[name]
	n.mu.Unlock()
	if w == nil {
		return nil, nil, fmt.Errorf("%w: %s", ErrUnknown, name)
	}
	b, err := n.made(ctx, w)
	if err != nil {
		return nil, nil, fmt.Errorf("network %s: %w", name, err)
	}
	return b, &w.listeners, nil
}

// known returns what the name server has to know of a pod.
func (n *Networks) known(pod netns.Pod, bridgeOf func(name string) *bridge.Bridge) resolver.Pod {
	out := resolver.Pod{ID: pod.ID, Namespace: pod.Namespace, Upstreams: pod.Resolvers, Closed: len(pod.Attachments) > 0}
	attachments := pod.Attachments
	if len(attachments) == 0 {
		attachments, out.Upstreams = []netns.Attachment{{Network: Default}}, nil
	}
	for _, a := range attachments {
		c := n.config(a.Network)
		out.Closed = out.Closed && c.Internal
		if len(out.Upstreams) == 0 {
			out.Upstreams = c.Resolvers
		}
		b := bridgeOf(a.Network)
		if b == nil || c.NoNames {
			continue
		}
		m := resolver.Member{Network: a.Network, Addresses: b.Addresses(pod.ID), Names: slices.Concat(pod.Names, a.Aliases)}
		for number, s := range pod.Services {
			addrs := m.Addresses
			if bridge.Remapped(s) {
				addrs = nil
				for _, ip := range m.Addresses {
					if to, ok := bridge.ServiceAddress(ip, number); ok {
						addrs = append(addrs, to)
					}
				}
			}
			m.Services = append(m.Services, resolver.Service{Names: s.Names, Addresses: addrs})
		}
		n.names.Serve(a.Network, b.Subnets())
		out.Members = append(out.Members, m)
	}
	return out
}

// leave takes the pod out of those that a network's bridge is to be made with, and returns
// the bridge; nil when there is none.
func leave(n *Networks, w *network, podID string) *bridge.Bridge {
	w.making.Lock() // it may be made with the pod just now
	defer w.making.Unlock()
	n.mu.Lock()
	defer n.mu.Unlock()
	w.live = slices.DeleteFunc(slices.Clone(w.live), func(p netns.Pod) bool { return p.ID == podID })
	return w.bridge
}

// Teardown implements netns.Network.
func (n *Networks) Teardown(ctx context.Context, podID string) error {
	n.names.Remove(podID)
	n.mu.Lock()
	var networks []*network
	for _, name := range n.pods[podID] {
		if w := n.networks[name]; w != nil {
			networks = append(networks, w)
		}
	}
	n.mu.Unlock()
	var bridges []*bridge.Bridge
	for _, w := range networks {
		if b := leave(n, w, podID); b != nil {
			bridges = append(bridges, b)
		}
	}
	errs := []error{n.Base.Teardown(ctx, podID)}
	for _, b := range bridges {
		errs = append(errs, b.Teardown(ctx, podID))
	}
	err := errors.Join(errs...)
	if err == nil {
		n.mu.Lock()
		delete(n.pods, podID)
		n.mu.Unlock()
	}
	return err
}

// Status implements netns.Network.
func (n *Networks) Status(ctx context.Context) error { return n.Base.Status(ctx) }

// SetPodCIDR implements netns.Network, for the network that pods are on by default.
func (n *Networks) SetPodCIDR(ctx context.Context, cidrs []netip.Prefix) error {
	err := n.Base.SetPodCIDR(ctx, cidrs)
	if err == nil && n.base.active() {
		n.speaker.listen(Default, n.Bridge, &n.base)
	}
	return err
}

// Reconcile implements netns.Network.
func (n *Networks) Reconcile(ctx context.Context, live []netns.Pod) error {
	var onBase []netns.Pod
	on := map[string][]netns.Pod{}
	var errs []error
	speaking := false // a pod on the default network may be asking for names
	for _, pod := range live {
		if len(pod.Attachments) == 0 {
			onBase = append(onBase, pod)
			speaking = speaking || len(pod.Names) > 0
			continue
		}
		if err := n.enter(pod); err != nil {
			errs = append(errs, fmt.Errorf("network of pod %s: %w", pod.ID, err))
			continue
		}
		for i, one := range n.links(pod) {
			name := pod.Attachments[i].Network
			if name == Default {
				onBase = append(onBase, one)
				speaking = true
			} else {
				on[name] = append(on[name], one)
			}
		}
	}
	if speaking && n.Bridge != nil {
		n.Bridge.NoteResolvers()
	}
	errs = append(errs, n.Base.Reconcile(ctx, onBase))
	n.mu.Lock()
	for name, pods := range on {
		n.networks[name].live = pods // entered: it is there
	}
	n.mu.Unlock()
	for name := range on {
		if _, _, err := n.bridgeOf(ctx, name); err != nil {
			errs = append(errs, err)
		}
	}
	// All names are known before the first question is read.
	listen := map[string]func(){}
	for _, pod := range live {
		n.restore(ctx, pod, listen)
	}
	for _, f := range listen {
		f()
	}
	errs = append(errs, n.speaker.dropRest())
	return errors.Join(errs...)
}

// restore makes the names of a live pod known again, and adds what has to listen for it,
// by network.
func (n *Networks) restore(ctx context.Context, pod netns.Pod, listen map[string]func()) {
	if len(pod.Names) == 0 {
		return
	}
	attachments := pod.Attachments
	if len(attachments) == 0 {
		attachments = []netns.Attachment{{Network: Default}}
	}
	bridges := map[string]*bridge.Bridge{}
	for _, a := range attachments {
		b, l, err := n.bridgeOf(ctx, a.Network)
		if err != nil || b == nil || len(b.Addresses(pod.ID)) == 0 {
			continue // it was said before, or the pod is on a network of CNI plugins
		}
		bridges[a.Network] = b
		if !n.config(a.Network).NoNames {
			listen[a.Network] = func() { n.speaker.listen(a.Network, b, l) }
		}
	}
	if len(bridges) > 0 {
		n.names.Add(n.known(pod, func(name string) *bridge.Bridge { return bridges[name] }))
	}
}

// Rename makes the names of a pod those of the argument. Nothing happens for one that is
// not connected.
func (n *Networks) Rename(ctx context.Context, pod netns.Pod) {
	n.mu.Lock()
	connected := len(pod.Attachments) == 0 || n.pods[pod.ID] != nil
	n.mu.Unlock()
	if connected { // else a network of its may be on its way out
		n.restore(ctx, pod, map[string]func(){})
	}
}

// listenAgain has the name server listen on a bridge that has been made again.
func (n *Networks) listenAgain(w *network) {
	w.making.Lock() // it may be on its way out
	defer w.making.Unlock()
	if w.bridge != nil && w.listeners.active() {
		n.speaker.listenAgain(w.Name, w.bridge, &w.listeners)
	}
}

// BridgeRemade is for bridge.Options.Remade of Options.Bridge.
func (n *Networks) BridgeRemade() {
	if n.base.active() {
		n.speaker.listenAgain(Default, n.Bridge, &n.base)
	}
}
