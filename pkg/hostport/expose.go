package hostport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/netns/kubeproxy"
)

// exposeInterval is how often the settings "auto" and "services" look for new ports.
const exposeInterval = 2 * time.Second

// Port is a port of the node network namespace, which has the same number on the host.
type Port struct {
	Proto  string // "tcp" or "udp"
	Number uint16
}

// String returns the port as it is written in the configuration: "tcp:8080".
func (p Port) String() string { return fmt.Sprintf("%s:%d", p.Proto, p.Number) }

// Settings for each port that something listens on, and for the ports of services.
const (
	auto     = "auto"
	services = "services"
)

// Expose is the setting network.expose.
type Expose struct {
	Ports    []Port
	Auto     bool // every TCP port that something in the node listens on at all addresses
	Services bool // every port that kube-proxy serves for clients outside of the cluster
}

// ParseExpose reads the setting: ports such as "tcp:8080", "auto" and "services".
func ParseExpose(settings []string) (e Expose, err error) {
	for _, s := range settings {
		switch s {
		case auto:
			e.Auto = true
			continue
		case services:
			e.Services = true
			continue
		}
		proto, text, _ := strings.Cut(s, ":")
		number, err := strconv.ParseUint(text, 10, 16)
		if err != nil || number == 0 || proto != "tcp" && proto != "udp" {
			return Expose{}, fmt.Errorf("network.expose: %q is neither %q, %q nor a port such as \"tcp:8080\"", s, auto, services)
		}
		e.Ports = append(e.Ports, Port{proto, uint16(number)})
	}
	return e, nil
}

// Exposer makes ports of the node's network reachable on the real host.
type Exposer struct {
	Expose
	Forwarder netns.PortForwarder
	// InNode runs a function in the node network namespace.
	InNode func(func() error) error
	Log    *slog.Logger

	exposed map[netns.HostPort]func(context.Context) error // nil: it could not be exposed
}

// Start exposes Ports and what else is asked for and there, so that an earlier run's are
// taken over before Forwarder.Sweep, and goes on looking until ctx ends. A port that cannot be
// exposed is logged once: the node serves without it.
func (e *Exposer) Start(ctx context.Context) {
	e.exposed = map[netns.HostPort]func(context.Context) error{}
	e.set(ctx, e.fixed())
	if e.Auto || e.Services {
		e.look(ctx)
		go e.follow(ctx)
	}
}

// fixed returns the ports that are always forwarded.
func (e *Exposer) fixed() []netns.HostPort {
	var out []netns.HostPort
	for _, p := range e.Ports {
		out = append(out, p.toLoopback())
	}
	return out
}

// toLoopback forwards to what listens in the node at all addresses.
func (p Port) toLoopback() netns.HostPort {
	return netns.HostPort{Proto: p.Proto, HostPort: p.Number, TargetIP: netip.AddrFrom4([4]byte{127, 0, 0, 1}), TargetPort: p.Number}
}

// follow looks again and again.
func (e *Exposer) follow(ctx context.Context) {
	tick := time.NewTicker(exposeInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			e.look(ctx)
		}
	}
}

// look exposes new ports, and no longer those that are gone.
func (e *Exposer) look(ctx context.Context) {
	found, err := e.find()
	if err != nil {
		e.Log.Warn("looking for ports of the node failed", "error", err)
		return
	}
	e.set(ctx, append(e.fixed(), found...))
}

// find returns what is to be exposed beside the fixed ports.
func (e *Exposer) find() (found []netns.HostPort, err error) {
	err = e.InNode(func() error {
		if e.Auto {
			ports, err := listeners()
			if err != nil {
				return err
			}
			for _, p := range ports {
				found = append(found, p.toLoopback())
			}
		}
		if !e.Services {
			return nil
		}
		ports, err := kubeproxy.Ports()
		found = append(found, ofServices(ports)...)
		return err
	})
	return found, err
}

// ofServices returns how ports of services are forwarded: a NodePort from all addresses of
// the host, what is at an address from this one.
func ofServices(ports []kubeproxy.Port) []netns.HostPort {
	var out []netns.HostPort
	for _, p := range ports {
		h := netns.HostPort{Proto: p.Proto, HostPort: p.At.Port(), TargetIP: p.At.Addr(), TargetPort: p.At.Port()}
		if !p.NodePort {
			h.HostIP = p.At.Addr()
		}
		// One node port is of both families: the forwarding listens on both.
		same := func(o netns.HostPort) bool {
			return o.Proto == h.Proto && o.HostPort == h.HostPort && o.HostIP == h.HostIP
		}
		if !slices.Contains(neverAuto, h.HostPort) && !slices.ContainsFunc(out, same) {
			out = append(out, h)
		}
	}
	return out
}

// set exposes what is wanted and not yet exposed, and ends what is no longer wanted.
func (e *Exposer) set(ctx context.Context, want []netns.HostPort) {
	for p, release := range e.exposed {
		if slices.Contains(want, p) {
			continue
		}
		if release != nil {
			if err := release(ctx); err != nil {
				e.Log.Warn("a port of the node is still forwarded", "port", name(p), "error", err)
				continue
			}
		}
		delete(e.exposed, p)
	}
	for _, p := range want {
		if _, done := e.exposed[p]; done {
			continue
		}
		release, err := e.Forwarder.Expose(ctx, p)
		if err != nil {
			e.Log.Warn("a port of the node's network is not reachable from the host", "port", name(p), "error", err)
		} else {
			e.Log.Info("a port of the node's network is reachable from the host", "port", name(p))
		}
		e.exposed[p] = release
	}
}

// name returns the port as it is logged.
func name(p netns.HostPort) string {
	text := Port{p.Proto, p.HostPort}.String()
	if p.HostIP.IsValid() {
		text += " at " + p.HostIP.String()
	}
	return text
}

// neverAuto are ports that "auto" and "services" leave alone: those of a node's and a cluster's own
// programs (kubelet, etcd, controller manager, scheduler, kube-proxy), which serve whoever
// can reach them, or whose keys are worth the whole cluster, and the tunnel's on the host,
// which would find its own taken. Listing one opens it.
var neverAuto = []uint16{2379, 2380, 10248, 10249, 10250, 10255, 10256, 10257, 10259, 51820}

// listeners returns the TCP ports that something listens on at all addresses, in the
// calling thread's network namespace.
func listeners() ([]Port, error) {
	var out []Port
	var errs []error
	for _, table := range []string{"tcp", "tcp6"} {
		f, err := os.Open("/proc/thread-self/net/" + table)
		if table == "tcp6" && errors.Is(err, fs.ErrNotExist) {
			continue // a kernel without IPv6
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		out, err = appendListeners(out, f)
		errs = append(errs, err)
		f.Close()
	}
	return out, errors.Join(errs...)
}

// appendListeners adds the listeners in a table of proc_pid_net(5) to out, each once.
func appendListeners(out []Port, table io.Reader) ([]Port, error) {
	data, err := io.ReadAll(table)
	if err != nil {
		return out, err
	}
	for line := range strings.Lines(string(data)) {
		// sl local_address rem_address st …; 0A is TCP_LISTEN.
		f := strings.Fields(line)
		if len(f) < 4 || f[3] != "0A" {
			continue
		}
		address, text, _ := strings.Cut(f[1], ":")
		number, err := strconv.ParseUint(text, 16, 16)
		p := Port{"tcp", uint16(number)}
		if err == nil && strings.Trim(address, "0") == "" && !slices.Contains(neverAuto, p.Number) && !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out, nil
}
