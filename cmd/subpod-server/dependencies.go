package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/subpod/subpod/cmd/internal/cli"
	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/netns/egress"
	"github.com/subpod/subpod/netns/named"
	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/audit"
	"github.com/subpod/subpod/pkg/cgroup"
	"github.com/subpod/subpod/pkg/config"
	"github.com/subpod/subpod/pkg/control"
	"github.com/subpod/subpod/pkg/cri"
	"github.com/subpod/subpod/pkg/events"
	"github.com/subpod/subpod/pkg/health"
	"github.com/subpod/subpod/pkg/hostport"
	"github.com/subpod/subpod/pkg/nri"
	"github.com/subpod/subpod/pkg/oci"
	"github.com/subpod/subpod/pkg/ocispec"
	"github.com/subpod/subpod/pkg/pod"
	"github.com/subpod/subpod/pkg/pod/container"
	"github.com/subpod/subpod/pkg/pod/sandbox"
	"github.com/subpod/subpod/pkg/rpc"
	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/stats"
	"github.com/subpod/subpod/pkg/supervise"
	"github.com/subpod/subpod/pkg/volumes"
	"github.com/subpod/subpod/rootless"
	"github.com/subpod/subpod/storage"
)

// dependencies are what a server is made of.
type dependencies struct {
	state    *state.Store
	storage  *storage.Store
	events   *events.Bus
	manager  *pod.Manager
	units    *supervise.Supervisor
	plugins  *nri.Plugins // nil: they are not wanted
	cri      cri.Dependencies
	control  control.Dependencies
	ports    *hostport.Forwarder // nil where the node has no port driver
	egress   *egress.Manager     // nil where no sockets are switched
	observer observer
}

func (d *dependencies) close() {
	if d.egress != nil {
		d.egress.Close()
	}
	if d.plugins != nil {
		d.plugins.Close()
	}
	if d.units != nil {
		d.units.Close()
	}
	if d.manager != nil {
		d.manager.Close()
	}
	if d.events != nil {
		d.events.Close()
	}
	var errs []error
	if d.storage != nil {
		errs = append(errs, d.storage.Close())
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
func openDependencies(ctx context.Context, cfg *config.Config, degraded string, node *rootless.Node, nodeNet *netns.Thread, level *slog.LevelVar) (_ *dependencies, err error) {
	d := &dependencies{events: events.New(0)}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	if d.state, err = state.Open(filepath.Join(cfg.Daemon.DataDir, "state.db"), slog.Default()); err != nil {
		return nil, err
	}
	d.observer = newObserver(cfg, d.state, node, nodeNet, level)
	images := storageOptions(cfg, node)
	images.Pulled = d.observer.pulled()
	if d.storage, err = storage.Open(ctx, images); err != nil {
		return nil, err
	}
	cg := detectCgroup(cfg, node)
	var noEgress string
	d.egress, noEgress = newEgress(cfg, node, nodeNet)
	options := ociOptions(cfg, cg, node)
	options.KeptMounts = keepMounts(cfg, images)
	if d.egress != nil {
		options.Switch = d.egress.Install
	}
	executor, err := oci.New(ctx, options)
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
	d.connect(cfg, node, executor, network, host, cg, egressPolicy(cfg, node, network, noEgress))
	if networks, ok := network.(*named.Networks); ok {
		d.control.Named = networks
	}
	d.cri.Degraded = degraded
	d.cri.Info = func() map[string]any {
		out := info(cfg, degraded, node, cg, d.storage.Info())
		if d.egress != nil {
			out["switchedEgress"] = d.egress.Counts()
		}
		return out
	}
	return d, nil
}

// connect builds the core and what serves it from the opened stores and mechanisms.
func (d *dependencies) connect(cfg *config.Config, node *rootless.Node, executor *oci.Executor, network netns.Network, host ocispec.Host, cg cgroup.Delegation, policy sandbox.Egress) {
	sandboxes := newSandboxes(cfg, node, network, cg)
	sandboxes.Host.Egress = policy
	named := openVolumes(cfg)
	containers := &container.Builder{
		Dir:            filepath.Join(cfg.Daemon.RunDir, "containers"),
		SubPathDir:     filepath.Join(cfg.Daemon.RunDir, "subpaths"),
		HostTree:       hostTree(node),
		Images:         d.storage.Images,
		Rootfs:         d.storage.Rootfs,
		Executor:       executor,
		Files:          sandboxes.Files,
		NodeNetNS:      node.NetNS,
		Host:           host,
		Cgroup:         cg,
		SeccompProfile: cfg.Runtime.SeccompProfile,
		CDISpecDirs:    cfg.Runtime.CDISpecDirs,
		Volumes:        named,
		SecretDir:      filepath.Join(cfg.Daemon.DataDir, "secrets"),
		Init:           initProgram(),
		Log:            slog.Default(),
	}
	orphans := &pod.Orphans{State: d.state, Rootfs: d.storage.Rootfs, Executor: executor, SandboxDir: sandboxes.Dir, ContainerDir: containers.Dir, SubPathDir: containers.SubPathDir}
	handlers := pod.Handlers{Default: cfg.Runtime.DefaultHandler, Known: executor.Handlers()}
	collector := newStats(d.storage)
	sessions := &pod.Sessions{State: d.state, Executor: executor, NodeNetNS: node.NetNS, Bounding: host.Bounding}
	checks := health.New(healthExec(sessions))
	options := pod.Options{
		NodeID:     node.Identity,
		LogDir:     filepath.Join(cfg.Daemon.DataDir, "logs"),
		Handlers:   handlers,
		Host:       sandboxes.Host,
		State:      d.state,
		Sandboxes:  sandboxes,
		Containers: containers,
		Processes:  executor,
		Orphans:    orphans,
		Events:     d.events,
		Health:     checks,
		ReopenLog:  sessions.ReopenLog,
		Forget:     collector.Forget,
		Changed:    func(podID string) { d.units.Kick(podID) },
		Restart: func(ctx context.Context, podID, id string, grace time.Duration) error {
			return d.units.RestartUnhealthy(ctx, podID, id, grace)
		},
		Log: slog.Default(),
	}
	if d.plugins = d.newPlugins(cfg); d.plugins != nil {
		options.Plugins, containers.Adjust = d.plugins, d.plugins.Adjust
	}
	d.manager = pod.New(options)
	restarter := &pod.Restarter{Manager: d.manager}
	d.units = newSupervisor(node, restarter, d.state, sessions, sandboxes.Dir)
	d.control = control.Dependencies{
		Containers:   d.manager,
		Sessions:     sessions,
		Restarter:    restarter,
		Supervisor:   d.units,
		Copier:       &pod.Copier{Manager: d.manager, Roots: containers},
		Checker:      &pod.Checker{State: d.state, Images: d.storage.Images, Orphans: orphans},
		Images:       d.storage.Images,
		Rootfs:       d.storage.Rootfs,
		NamedVolumes: named,
		State:        d.state,
		Recorder:     d.observer.traces,
		Level:        d.observer.level,
		Audit:        d.auditLog(),
		HostTree:     hostTree(node),
		TempDir:      filepath.Join(cfg.Daemon.RunDir, "loads"),
	}
	d.connectCRI(node, sessions, checks, network, collector, handlers, host, cg)
}

// connectCRI gives the CRI service what it is served from.
func (d *dependencies) connectCRI(node *rootless.Node, sessions *pod.Sessions, checks *health.Monitor, network netns.Network, collector *stats.Collector, handlers pod.Handlers, host ocispec.Host, cg cgroup.Delegation) {
	d.cri = cri.Dependencies{
		Version:    cli.Version(version),
		Manager:    d.manager,
		Sessions:   sessions,
		Health:     checks,
		State:      d.state,
		Images:     d.storage.Images,
		Rootfs:     d.storage.Rootfs,
		Network:    network,
		Events:     d.events,
		Stats:      collector,
		Delegation: cg,
		Host:       host,
		UIDs:       node.UIDMap,
		GIDs:       node.GIDMap,
		Handlers:   handlers,
		MissingIDs: missingIDs(node),
	}
}

func newSupervisor(node *rootless.Node, pods *pod.Restarter, records *state.Store, sessions *pod.Sessions, sandboxDir string) *supervise.Supervisor {
	return supervise.New(supervise.Options{
		NodeID: node.Identity, Pods: pods, Records: records, Sessions: sessions,
		Volumes: func(podID string) string { return filepath.Join(sandboxDir, podID, api.MemoryVolumes) },
		Health:  rpc.CheckHealth, Log: slog.Default(),
	})
}

// openVolumes returns the named volumes.
func openVolumes(cfg *config.Config) *volumes.Store {
	s := &volumes.Store{Dir: filepath.Join(cfg.Daemon.DataDir, "volumes")}
	if err := s.Clear(); err != nil {
		slog.Warn("what an interrupted copy into a volume has left could not be removed", "error", err)
	}
	return s
}

// initProgram returns the program that is the init process of containers: it lies beside
// this one.
func initProgram() string {
	exe, err := os.Executable()
	if err != nil {
		return ""
	}
	return filepath.Join(filepath.Dir(exe), rootless.NodeBinary)
}

// healthExec runs the command of a health check.
func healthExec(sessions *pod.Sessions) health.Exec {
	return func(ctx context.Context, id string, command []string, timeout time.Duration) (int32, []byte, error) {
		r, err := sessions.Probe(ctx, id, command, timeout)
		return r.ExitCode, slices.Concat(r.Stdout, r.Stderr), err
	}
}

func newSandboxes(cfg *config.Config, node *rootless.Node, network netns.Network, cg cgroup.Delegation) *sandbox.Builder {
	return &sandbox.Builder{
		Dir: podsDir(cfg),
		Host: sandbox.Host{
			HostNetwork: node.Uplink == rootless.UplinkHost,
			IngressRate: cfg.Network.IngressRate.Bits,
			EgressRate:  cfg.Network.EgressRate.Bits,
			UIDs:        node.UIDMap,
			GIDs:        node.GIDMap,
			Cgroup:      cg,
		},
		DNS:     dnsOf(node),
		Network: network,
		Cgroup:  cg,
	}
}

// detectCgroup also logs what there is not.
func detectCgroup(cfg *config.Config, node *rootless.Node) cgroup.Delegation {
	cg := cgroup.Detect(cfg.Runtime.CgroupManager, node.CgroupEvacuated)
	if !cg.Enabled() {
		slog.Warn("containers run without resource limits", "reason", cg.Reason)
	} else if missing := cg.Missing(); len(missing) > 0 {
		slog.Warn("limits of some cgroup controllers are left out: they are not delegated to the user (docs/cgroups.md)", "missing", missing)
	}
	return cg
}

func newStats(store *storage.Store) *stats.Collector {
	return stats.New(stats.Options{
		RootfsUsage: func(ctx context.Context, id string) (stats.Usage, error) {
			u, err := store.Rootfs.Usage(ctx, id)
			return stats.Usage(u), err
		},
		Mountpoint: store.Info().Root,
		Log:        slog.Default(),
	})
}

// info is the verbose status.
func info(cfg *config.Config, degraded string, node *rootless.Node, cg cgroup.Delegation, images storage.Info) map[string]any {
	limits := rootless.UplinkLimits(node.Uplink, node.NoIPv6)
	if lacks := rootless.HostWayOut().Lacks(node.Uplink, node.IPv6 && cfg.Network.HasIPv6()); lacks != "" {
		limits += "; " + lacks
	}
	return map[string]any{
		"uplink":  map[string]string{"name": node.Uplink, "reason": node.UplinkReason, "limits": limits},
		"config":  cfg,
		"node":    node,
		"cgroup":  cg,
		"storage": images,
		"server":  map[string]any{"pid": os.Getpid(), "goroutines": runtime.NumGoroutine(), "degraded": degraded},
	}
}

// auditLog returns the log of what reaches into containers and out of them.
func (d *dependencies) auditLog() *audit.Log {
	return &audit.Log{
		Log: slog.Default(),
		Client: func(ctx context.Context) audit.Client {
			return audit.Client(rpc.ClientOf(ctx))
		},
		Name: func(ref string) string {
			name := ""
			if c, err := d.state.FindContainer(ref); err == nil {
				ref, name = c.PodID, "/"+c.Config.V.GetMetadata().GetName()
			}
			if p, err := d.state.FindPod(ref); err == nil {
				m := p.Config.V.GetMetadata()
				return m.GetNamespace() + "/" + m.GetName() + name
			}
			return ""
		},
	}
}
