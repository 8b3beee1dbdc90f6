package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/pkg/cgroup"
	"github.com/subpod/subpod/pkg/cli"
	"github.com/subpod/subpod/pkg/config"
	"github.com/subpod/subpod/pkg/cri"
	"github.com/subpod/subpod/pkg/events"
	"github.com/subpod/subpod/pkg/hostport"
	"github.com/subpod/subpod/pkg/oci"
	"github.com/subpod/subpod/pkg/ocispec"
	"github.com/subpod/subpod/pkg/pod"
	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/stats"
	"github.com/subpod/subpod/rootless"
	"github.com/subpod/subpod/storage"
)

// dependencies are what a server is made of.
type dependencies struct {
	state   *state.Store
	images  *storage.Store
	events  *events.Bus
	runtime *pod.Runtime
	service *cri.Service
	ports   *hostport.Forwarder // nil where the node has no port driver
}

func (d *dependencies) close() {
	if d.runtime != nil {
		d.runtime.Close()
	}
	if d.events != nil {
		d.events.Close()
	}
	var errs []error
	if d.images != nil {
		errs = append(errs, d.images.Close())
	}
	if d.state != nil {
		errs = append(errs, d.state.Close())
	}
	if err := errors.Join(errs...); err != nil {
		slog.Error("closing the stores failed", "error", err)
	}
}

// openDependencies opens the stores and connects everything with everything. On an
// error it closes what was opened. degraded is why cfg is not the configuration on
// disk, "" when it is.
func openDependencies(ctx context.Context, cfg *config.Config, degraded string, node *rootless.Node, nodeNet *netns.Node) (_ *dependencies, err error) {
	d := &dependencies{events: events.New(0)}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	if d.state, err = state.Open(filepath.Join(cfg.Daemon.DataDir, "state.db"), slog.Default()); err != nil {
		return nil, err
	}
	if d.images, err = storage.Open(ctx, storageOptions(cfg, node)); err != nil {
		return nil, err
	}
	cg := detectCgroup(cfg, node)
	executor, err := oci.New(ctx, ociOptions(cfg, cg))
	if err != nil {
		return nil, err
	}
	if node.PortSocket != "" {
		d.ports = hostport.NewForwarder(node)
	}
	network, err := newNetwork(cfg, node, nodeNet, d.ports)
	if err != nil {
		return nil, err
	}
	host, err := ocispec.DetectHost(cg)
	if err != nil {
		return nil, err
	}
	d.runtime = pod.New(d.podOptions(cfg, node, cg, executor, network, host))
	d.service = &cri.Service{
		RuntimeVersion: cli.Version(version),
		Runtime:        d.runtime,
		Images:         d.images,
		Network:        network,
		Events:         d.events,
		Cgroup:         cg,
		MissingIDs:     missingIDs(node),
		Degraded:       degraded,
		Info:           func() map[string]any { return info(cfg, degraded, node, cg, d.images.Info()) },
		Log:            slog.Default(),
	}
	return d, nil
}

// detectCgroup also logs what there is not.
func detectCgroup(cfg *config.Config, node *rootless.Node) cgroup.Facts {
	cg := cgroup.Detect(cfg.Runtime.CgroupManager, node.CgroupEvacuated)
	if !cg.Enabled() {
		slog.Warn("containers run without resource limits", "reason", cg.Reason)
	} else if missing := cg.Missing(); len(missing) > 0 {
		slog.Warn("limits of some cgroup controllers are left out: they are not delegated to the user (docs/cgroups.md)", "missing", missing)
	}
	return cg
}

func (d *dependencies) podOptions(cfg *config.Config, node *rootless.Node, cg cgroup.Facts, executor *oci.Executor, network netns.Network, host ocispec.Host) pod.Options {
	return pod.Options{
		RunDir:         cfg.Daemon.RunDir,
		LogDir:         filepath.Join(cfg.Daemon.DataDir, "logs"),
		Node:           node.Identity,
		State:          d.state,
		Images:         d.images,
		Executor:       executor,
		Network:        network,
		HostNetwork:    node.Uplink == rootless.UplinkHost,
		IngressRate:    cfg.Network.IngressRate.Bits,
		EgressRate:     cfg.Network.EgressRate.Bits,
		NodeNetNS:      node.NetNS,
		Host:           host,
		UIDs:           idMaps(node.UIDMap),
		GIDs:           idMaps(node.GIDMap),
		Cgroup:         cg,
		DefaultHandler: cfg.Runtime.DefaultHandler,
		SeccompProfile: cfg.Runtime.SeccompProfile,
		CDISpecDirs:    cfg.Runtime.CDISpecDirs,
		DNS:            pod.DNS{HostFile: "/etc/resolv.conf", UplinkFile: node.ResolvConf},
		Events:         d.events,
		Stats:          newStats(d.images),
		Log:            slog.Default(),
	}
}

func newStats(images *storage.Store) *stats.Collector {
	return stats.New(stats.Options{
		RootfsUsage: func(ctx context.Context, id string) (stats.Usage, error) {
			u, err := images.RootfsUsage(ctx, id)
			return stats.Usage(u), err
		},
		Mountpoint: images.Info().Root,
		Log:        slog.Default(),
	})
}

// info is the verbose status.
func info(cfg *config.Config, degraded string, node *rootless.Node, cg cgroup.Facts, images storage.Info) map[string]any {
	return map[string]any{
		"uplink":  map[string]string{"name": node.Uplink, "reason": node.UplinkReason, "limits": rootless.UplinkLimits(node.Uplink)},
		"config":  cfg,
		"node":    node,
		"cgroup":  cg,
		"storage": images,
		"server":  map[string]any{"pid": os.Getpid(), "goroutines": runtime.NumGoroutine(), "degraded": degraded},
	}
}
