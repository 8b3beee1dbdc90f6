package main

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/subpod/subpod/cmd/internal/cli"
	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/pkg/config"
	"github.com/subpod/subpod/pkg/metrics"
	"github.com/subpod/subpod/pkg/rpc"
	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/trace"
	"github.com/subpod/subpod/rootless"
	"github.com/subpod/subpod/storage"
)

// observer is what looks at the server while it works.
type observer struct {
	metrics *metrics.Metrics // nil without an endpoint
	traces  *trace.Recorder
	level   *slog.LevelVar
}

// metricsOff and metricsUnix are values of metrics.listen; others are addresses.
const (
	metricsOff  = "off"
	metricsUnix = "unix"
)

func newObserver(cfg *config.Config, records *state.Store, node *rootless.Node, nodeNet *netns.Thread, level *slog.LevelVar) observer {
	o := observer{traces: &trace.Recorder{}, level: level}
	if cfg.Metrics.Listen != metricsOff {
		o.metrics = metrics.New(cli.Version(version), sources(records, node, nodeNet), storage.PullCauses())
		o.traces.Ended = o.metrics.Step
	}
	return o
}

// request returns what counts requests; nil where nothing does.
func (o observer) request() func(rpc.Request) {
	if o.metrics == nil {
		return nil
	}
	return func(r rpc.Request) { o.metrics.Request(r.Service, r.Method, r.Code, r.Took, r.Waiting) }
}

// pulled returns what counts pulls; nil where nothing does.
func (o observer) pulled() func(storage.Pulled) {
	if o.metrics == nil {
		return nil
	}
	return func(p storage.Pulled) { o.metrics.Pull(p.Cause, p.Bytes, p.Took) }
}

// serveMetrics starts the endpoint. A server that cannot have one serves without it: it
// costs no container.
func (d *dependencies) serveMetrics(ctx context.Context, cfg *config.Config) {
	socket := filepath.Join(cfg.Daemon.RunDir, "metrics.sock")
	if cfg.Metrics.Listen != metricsUnix {
		_ = os.Remove(socket) // of a server that was killed
	}
	if d.observer.metrics == nil {
		return
	}
	network, address := "tcp", cfg.Metrics.Listen
	var l net.Listener
	var err error
	if address == metricsUnix {
		network, address = "unix", socket
		l, err = listenUnix(address)
	} else {
		l, err = net.Listen(network, address)
	}
	if err != nil {
		slog.Error("no metrics are served: free the address or change metrics.listen, then: subpod reload", "address", address, "error", err)
		return
	}
	slog.Info("metrics are served", "network", network, "address", address, "path", metrics.Path)
	go func() {
		if err := d.observer.metrics.Serve(ctx, l, slog.NewLogLogger(slog.Default().Handler(), slog.LevelDebug)); err != nil {
			slog.Error("metrics are no longer served; again after: subpod reload", "address", address, "error", err)
		}
	}()
}

// sources are where metrics come from that are looked at when they are asked for.
func sources(records *state.Store, node *rootless.Node, nodeNet *netns.Thread) metrics.Sources {
	return metrics.Sources{
		Pods:      func() []metrics.Pod { return countedPods(records) },
		Processes: helperProcesses,
		Restarts:  node.Restarts,
		State:     func() metrics.State { return metrics.State(records.Counts()) },
		Uplink: func() (metrics.Traffic, bool) {
			if node.NetNS == "" {
				return metrics.Traffic{}, false
			}
			return uplinkTraffic(nodeNet)
		},
	}
}

// countedPods returns what is counted of the records, but of those of containers whose
// creation has not succeeded.
func countedPods(records *state.Store) []metrics.Pod {
	var out []metrics.Pod
	at := map[string]int{}
	for _, p := range records.Pods() {
		m := p.Config.V.GetMetadata()
		at[p.ID] = len(out)
		out = append(out, metrics.Pod{Namespace: m.GetNamespace(), Name: m.GetName(), State: strings.ToLower(string(p.Status.Phase))})
	}
	restarts := map[string]map[string]uint64{}
	for _, p := range records.Pods() {
		if p.Workload != nil {
			restarts[p.ID] = map[string]uint64{}
			for name, c := range p.Supervision.Containers {
				restarts[p.ID][name] = uint64(c.Restarts)
			}
		}
	}
	for _, c := range records.Containers() {
		i, ok := at[c.PodID]
		if !ok || !c.Status.Created {
			continue
		}
		name := c.Config.V.GetMetadata().GetName()
		out[i].Containers = append(out[i].Containers, metrics.Container{Name: name, State: strings.ToLower(c.StateWord()), Restarts: restarts[c.PodID][name]})
	}
	return out
}

// helpers are the programs that work for the server.
var helpers = []string{"conmon", "fuse-overlayfs", rootless.MonitorBinary}

// helperProcesses counts the processes of the node that run a helper.
func helperProcesses() map[string]int {
	count := map[string]int{}
	for _, h := range helpers {
		count[h] = 0
	}
	own, _ := os.Readlink("/proc/self/ns/mnt")
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		if h := helperOf(filepath.Join("/proc", e.Name()), own); h != "" {
			count[h]++
		}
	}
	return count
}

// helperOf returns the helper that the process of a directory in /proc runs; "" for none.
// Those of containers are in mount namespaces of their own: their names count for nothing.
func helperOf(dir, ownMounts string) string {
	comm, err := os.ReadFile(filepath.Join(dir, "comm"))
	if err != nil {
		return ""
	}
	for _, h := range helpers {
		if strings.TrimSpace(string(comm)) != h[:min(len(h), 15)] {
			continue
		}
		if ns, err := os.Readlink(filepath.Join(dir, "ns/mnt")); err == nil && ns == ownMounts {
			return h
		}
	}
	return ""
}

// uplinkTraffic reads the counters of the uplink's interface.
func uplinkTraffic(nodeNet *netns.Thread) (t metrics.Traffic, ok bool) {
	err := nodeNet.Do(func() error {
		text, err := os.ReadFile("/proc/thread-self/net/dev")
		if err == nil {
			t, ok = parseTraffic(string(text), rootless.UplinkInterface)
		}
		return err
	})
	return t, ok && err == nil
}

// parseTraffic reads a line of /proc/net/dev.
func parseTraffic(text, device string) (t metrics.Traffic, ok bool) {
	for line := range strings.Lines(text) {
		name, counters, found := strings.Cut(line, ":")
		f := strings.Fields(counters)
		if !found || strings.TrimSpace(name) != device || len(f) < 16 {
			continue
		}
		flow := func(f []string) metrics.Flow {
			var v [4]uint64
			for i := range v {
				v[i], _ = strconv.ParseUint(f[i], 10, 64)
			}
			return metrics.Flow{Bytes: v[0], Packets: v[1], Errors: v[2], Dropped: v[3]}
		}
		return metrics.Traffic{Received: flow(f), Sent: flow(f[8:])}, true
	}
	return t, false
}
