package resolver

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
)

// Domain is the domain of the names of pods. Neither it nor ClusterDomain is ever asked
// for outside.
const (
	Domain        = "subpod.internal"
	ClusterDomain = "cluster.local"
)

// Pod is a pod that may ask, and the names by which others find it.
type Pod struct {
	ID string
	// Namespace is that in which a name is looked for first: of two services of one name,
	// a pod means that of its own namespace.
	Namespace string
	Members   []Member
	// Upstreams are asked instead of the Server's for names that no pod has.
	Upstreams []netip.Addr
	// Closed says that nobody is asked for such names: there are none.
	Closed bool
}

// Member is a pod's part in one network.
type Member struct {
	Network   string
	Addresses []netip.Addr // of the pod; the first name is theirs
	Names     []string
	Services  []Service
}

// Service is a further set of names, with addresses of its own.
type Service struct {
	Names     []string
	Addresses []netip.Addr
}

// Names are the names of pods by network. The zero value is ready for use.
type Names struct {
	mu       sync.RWMutex
	pods     map[string]*client
	networks map[string]*network
}

// network has the names that the pods of a network can look up.
type network struct {
	subnets []netip.Prefix
	names   map[string][]record
	owners  map[netip.Addr]string // the first name of the pod with the address
	clients map[netip.Addr]*client
}

type record struct {
	pod       string
	namespace string
	addr      netip.Addr
}

// client is a pod that may ask.
type client struct {
	Pod
	limit limiter
}

// Serve notes the subnets of a network: nothing outside is asked for addresses in them.
func (n *Names) Serve(name string, subnets []netip.Prefix) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.network(name).subnets = slices.Clone(subnets)
}

// Forget forgets a network. Idempotent.
func (n *Names) Forget(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.networks, name)
}

func (n *Names) network(name string) *network {
	if n.networks == nil {
		n.networks = map[string]*network{}
	}
	z := n.networks[name]
	if z == nil {
		z = &network{names: map[string][]record{}, owners: map[netip.Addr]string{}, clients: map[netip.Addr]*client{}}
		n.networks[name] = z
	}
	return z
}

// Add adds a pod, in the place of one with the same ID.
func (n *Names) Add(p Pod) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.remove(p.ID)
	c := &client{Pod: p}
	if n.pods == nil {
		n.pods = map[string]*client{}
	}
	n.pods[p.ID] = c
	for _, m := range p.Members {
		z := n.network(m.Network)
		for _, a := range m.Addresses {
			z.clients[a] = c
			if len(m.Names) > 0 {
				z.owners[a] = canonical(m.Names[0])
			}
		}
		z.add(p, m.Names, m.Addresses)
		for _, s := range m.Services {
			z.add(p, s.Names, s.Addresses)
		}
	}
}

func (z *network) add(pod Pod, names []string, addrs []netip.Addr) {
	for _, name := range names {
		name = canonical(name)
		for _, a := range addrs {
			if r := (record{pod.ID, pod.Namespace, a}); !slices.Contains(z.names[name], r) {
				z.names[name] = append(z.names[name], r)
			}
		}
	}
}

// Remove removes a pod. Idempotent.
func (n *Names) Remove(podID string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.remove(podID)
}

func (n *Names) remove(podID string) {
	c := n.pods[podID]
	if c == nil {
		return
	}
	delete(n.pods, podID)
	for _, m := range c.Members {
		z := n.networks[m.Network]
		if z == nil {
			continue
		}
		for _, a := range m.Addresses {
			if z.clients[a] == c {
				delete(z.clients, a)
				delete(z.owners, a)
			}
		}
		z.drop(podID, m.Names)
		for _, s := range m.Services {
			z.drop(podID, s.Names)
		}
	}
}

func (z *network) drop(pod string, names []string) {
	for _, name := range names {
		name = canonical(name)
		left := slices.DeleteFunc(z.names[name], func(r record) bool { return r.pod == pod })
		if z.names[name] = left; len(left) == 0 {
			delete(z.names, name)
		}
	}
}

// client returns the pod of a network with an address; nil without one.
func (n *Names) client(network string, addr netip.Addr) *client {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if z := n.networks[network]; z != nil {
		return z.clients[addr]
	}
	return nil
}

// lookup returns the addresses that a name has for the pod, beginning anywhere, and
// whether there is such a name, if only as the end of others.
func (n *Names) lookup(c *client, name string) (addrs []netip.Addr, exists bool) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	name = canonical(name)
	for _, m := range c.Members {
		z := n.networks[m.Network]
		if z == nil {
			continue
		}
		own := slices.ContainsFunc(z.names[name], func(r record) bool { return r.namespace == c.Namespace })
		for _, r := range z.names[name] {
			if !slices.Contains(addrs, r.addr) && (!own || r.namespace == c.Namespace) {
				addrs = append(addrs, r.addr)
			}
		}
		if len(addrs) == 0 && !exists && below(name, ClusterDomain) {
			for other := range z.names {
				exists = exists || strings.HasSuffix(other, "."+name)
			}
		}
	}
	if len(addrs) > 1 {
		k := rand.IntN(len(addrs))
		addrs = append(addrs[k:len(addrs):len(addrs)], addrs[:k]...)
	}
	return addrs, exists || len(addrs) > 0
}

// owner returns the name of the pod with an address, "" without one, and whether the
// address is in a network of the asking pod's.
func (n *Names) owner(c *client, addr netip.Addr) (name string, ours bool) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	for _, m := range c.Members {
		z := n.networks[m.Network]
		if z == nil {
			continue
		}
		if name := z.owners[addr]; name != "" {
			return name, true
		}
		ours = ours || slices.ContainsFunc(z.subnets, func(s netip.Prefix) bool { return s.Contains(addr) })
	}
	return "", ours
}

// canonical returns a name as the table has it: in lower case, without the final dot and
// without the domain.
func canonical(name string) string {
	name = strings.TrimSuffix(strings.ToLower(name), ".")
	return strings.TrimSuffix(name, "."+Domain)
}

// below reports whether a name in lower case is the domain's or one in it.
func below(name, domain string) bool {
	return name == domain || strings.HasSuffix(name, "."+domain)
}
