package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/pkg/config"
)

// exposeInterval is how often "auto" looks for new listeners.
const exposeInterval = 2 * time.Second

// nodePort is a port of the node network namespace.
type nodePort struct {
	proto string
	port  uint16
}

func (p nodePort) String() string { return fmt.Sprintf("%s:%d", p.proto, p.port) }

// exposer makes ports of pods on the node's network reachable on the real host: those
// that network.expose lists, and with "auto" every TCP port that something in the
// node listens on at all addresses.
type exposer struct {
	ports   *portForwarder
	thread  *netns.Thread
	exposed map[nodePort]func(context.Context) error // nil: it could not be
}

// expose does what the configuration lists, and goes on for "auto" until ctx ends. A
// port that cannot be had is said in the log: the node serves without it.
func expose(ctx context.Context, cfg *config.Config, ports *portForwarder, thread *netns.Thread) {
	if ports == nil || len(cfg.Network.Expose) == 0 {
		return
	}
	e := exposer{ports: ports, thread: thread, exposed: map[nodePort]func(context.Context) error{}}
	var fixed []nodePort
	auto := false
	for _, s := range cfg.Network.Expose {
		if s == "auto" {
			auto = true
			continue
		}
		proto, text, _ := strings.Cut(s, ":")
		port, _ := strconv.ParseUint(text, 10, 16) // validated
		fixed = append(fixed, nodePort{proto, uint16(port)})
	}
	e.set(ctx, fixed)
	if auto {
		go e.follow(ctx, fixed)
	}
}

// follow looks for listeners that came and went.
func (e *exposer) follow(ctx context.Context, fixed []nodePort) {
	for tick := time.NewTicker(exposeInterval); ; {
		var found []nodePort
		err := e.thread.Do(func() (err error) {
			found, err = listeners()
			return err
		})
		if err != nil {
			slog.Warn("the node's listeners cannot be read", "error", err)
		} else {
			e.set(ctx, append(slices.Clone(fixed), found...))
		}
		select {
		case <-ctx.Done():
			tick.Stop()
			return
		case <-tick.C:
		}
	}
}

// set exposes what is wanted and not yet exposed, and ends what is no longer wanted.
func (e *exposer) set(ctx context.Context, want []nodePort) {
	for p, release := range e.exposed {
		if slices.Contains(want, p) {
			continue
		}
		if release != nil {
			if err := release(ctx); err != nil {
				slog.Warn("a port of the node is still forwarded", "port", p.String(), "error", err)
				continue
			}
		}
		delete(e.exposed, p)
	}
	for _, p := range want {
		if _, done := e.exposed[p]; done {
			continue
		}
		release, err := e.ports.Expose(ctx, netns.HostPort{Proto: p.proto, HostPort: p.port, TargetIP: netip.AddrFrom4([4]byte{127, 0, 0, 1}), TargetPort: p.port})
		if err != nil {
			slog.Warn("a port of the node's network is not reachable from the host", "port", p.String(), "error", err)
		} else {
			slog.Info("a port of the node's network is reachable from the host", "port", p.String())
		}
		e.exposed[p] = release
	}
}

// listeners returns the TCP ports that something listens on at all addresses, in the
// calling thread's network namespace.
func listeners() ([]nodePort, error) {
	var out []nodePort
	var errs []error
	for _, table := range []string{"tcp", "tcp6"} {
		data, err := os.ReadFile("/proc/thread-self/net/" + table)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for line := range strings.Lines(string(data)) {
			// proc_pid_net(5): sl local_address rem_address st …; 0A is TCP_LISTEN.
			f := strings.Fields(line)
			if len(f) < 4 || f[3] != "0A" {
				continue
			}
			address, text, _ := strings.Cut(f[1], ":")
			port, err := strconv.ParseUint(text, 16, 16)
			p := nodePort{"tcp", uint16(port)}
			if err == nil && strings.Trim(address, "0") == "" && !slices.Contains(out, p) {
				out = append(out, p)
			}
		}
	}
	if len(errs) == 2 {
		return nil, errors.Join(errs...)
	}
	return out, nil
}
