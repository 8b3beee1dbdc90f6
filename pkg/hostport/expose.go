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
)

// exposeInterval is how often the setting "auto" looks for new listeners.
const exposeInterval = 2 * time.Second

// Port is a port of the node network namespace, which has the same number on the host.
type Port struct {
	Proto  string // "tcp" or "udp"
	Number uint16
}

// String returns the port as it is written in the configuration: "tcp:8080".
func (p Port) String() string { return fmt.Sprintf("%s:%d", p.Proto, p.Number) }

// auto is the setting for each port that something listens on.
const auto = "auto"

// ParseExpose reads the setting network.expose: ports such as "tcp:8080", and whether
// "auto" is among them.
func ParseExpose(settings []string) (ports []Port, all bool, err error) {
	for _, s := range settings {
		if s == auto {
			all = true
			continue
		}
		proto, text, _ := strings.Cut(s, ":")
		number, err := strconv.ParseUint(text, 10, 16)
		if err != nil || number == 0 || proto != "tcp" && proto != "udp" {
			return nil, false, fmt.Errorf("network.expose: %q is neither %q nor a port such as \"tcp:8080\"", s, auto)
		}
		ports = append(ports, Port{proto, uint16(number)})
	}
	return ports, all, nil
}

// Exposer makes ports of pods on the node's network reachable on the real host: the
// given ones, and with All every TCP port that something in the node listens on at all
// addresses.
type Exposer struct {
	Forwarder netns.PortForwarder
	Ports     []Port
	All       bool
	// InNode runs a function in the node network namespace.
	InNode func(func() error) error
	Log    *slog.Logger

	exposed map[Port]func(context.Context) error // nil: it could not be exposed
}

// Start exposes Ports, and with All goes on looking for listeners until ctx ends. A
// port that cannot be exposed is logged once: the node serves without it.
func (e *Exposer) Start(ctx context.Context) {
	e.exposed = map[Port]func(context.Context) error{}
	e.set(ctx, e.Ports)
	if e.All {
		go e.follow(ctx)
	}
}

// follow exposes new listeners, and no longer those that are gone.
func (e *Exposer) follow(ctx context.Context) {
	tick := time.NewTicker(exposeInterval)
	defer tick.Stop()
	for {
		var found []Port
		err := e.InNode(func() (err error) {
			found, err = listeners()
			return err
		})
		if err != nil {
			e.Log.Warn("reading the listeners of the node failed", "error", err)
		} else {
			e.set(ctx, append(slices.Clone(e.Ports), found...))
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// set exposes what is wanted and not yet exposed, and ends what is no longer wanted.
func (e *Exposer) set(ctx context.Context, want []Port) {
	for p, release := range e.exposed {
		if slices.Contains(want, p) {
			continue
		}
		if release != nil {
			if err := release(ctx); err != nil {
				e.Log.Warn("a port of the node is still forwarded", "port", p.String(), "error", err)
				continue
			}
		}
		delete(e.exposed, p)
	}
	for _, p := range want {
		if _, done := e.exposed[p]; done {
			continue
		}
		release, err := e.Forwarder.Expose(ctx, netns.HostPort{Proto: p.Proto, HostPort: p.Number,
			TargetIP: netip.AddrFrom4([4]byte{127, 0, 0, 1}), TargetPort: p.Number})
		if err != nil {
			e.Log.Warn("a port of the node's network is not reachable from the host", "port", p.String(), "error", err)
		} else {
			e.Log.Info("a port of the node's network is reachable from the host", "port", p.String())
		}
		e.exposed[p] = release
	}
}

// neverAuto are ports that "auto" leaves alone: those of a node's and a cluster's own
// programs (kubelet, etcd, controller manager, scheduler, kube-proxy), which serve whoever
// can reach them, or whose keys are worth the whole cluster. Listing one opens it.
var neverAuto = []uint16{2379, 2380, 10248, 10249, 10250, 10255, 10256, 10257, 10259}

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
