package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/cmd/internal/cli"
	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/pkg/cgroup"
	"github.com/subpod/subpod/pkg/config"
	"github.com/subpod/subpod/pkg/cri"
	"github.com/subpod/subpod/pkg/events"
	"github.com/subpod/subpod/pkg/oci"
	"github.com/subpod/subpod/pkg/ocispec"
	"github.com/subpod/subpod/pkg/pod"
	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/stats"
	"github.com/subpod/subpod/rootless"
	"github.com/subpod/subpod/storage"
)

// parts are what a server is made of.
type parts struct {
	state   *state.Store
	images  *storage.Store
	events  *events.Bus
	runtime *pod.Runtime
	service *cri.Service
	ports   *portForwarder // nil where the node has no ports of its own
}

func (p *parts) close() {
	if p.runtime != nil {
		p.runtime.Close()
	}
	if p.events != nil {
		p.events.Close()
	}
	var errs []error
	if p.images != nil {
		errs = append(errs, p.images.Close())
	}
	if p.state != nil {
		errs = append(errs, p.state.Close())
	}
	if err := errors.Join(errs...); err != nil {
		slog.Error("closing the stores failed", "error", err)
	}
}

// newParts opens and wires everything; what was opened is closed on an error.
func newParts(ctx context.Context, cfg *config.Config, node *rootless.Node, nodeThread *netns.Thread) (_ *parts, err error) {
	p := &parts{events: events.New(0)}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if p.state, err = state.Open(filepath.Join(cfg.Daemon.DataDir, "state.db"), slog.Default()); err != nil {
		return nil, err
	}
	if p.images, err = storage.Open(ctx, storageOptions(cfg, node)); err != nil {
		return nil, err
	}
	cg := cgroup.Detect(cfg.Runtime.CgroupManager, node.CgroupEvacuated)
	if !cg.Enabled() {
		slog.Warn("containers run without resource limits", "reason", cg.Reason)
	} else if missing := cg.Missing(); len(missing) > 0 {
		slog.Warn("limits of some cgroup controllers are left out: they are not delegated to the user (docs/cgroups.md)", "missing", missing)
	}
	executor, err := oci.New(ctx, ociOptions(cfg, cg))
	if err != nil {
		return nil, err
	}
	p.ports = hostPorts(node)
	network, err := newNetwork(cfg, node, nodeThread, p.ports)
	if err != nil {
		return nil, err
	}
	host, err := ocispec.DetectHost(cg)
	if err != nil {
		return nil, err
	}
	p.runtime = pod.New(pod.Options{
		RunDir:         cfg.Daemon.RunDir,
		LogDir:         filepath.Join(cfg.Daemon.DataDir, "logs"),
		Node:           node.Identity,
		State:          p.state,
		Images:         p.images,
		Executor:       executor,
		Network:        network,
		HostNetwork:    node.Uplink == rootless.UplinkHost,
		IngressRate:    cfg.Network.IngressRate.Bits,
		EgressRate:     cfg.Network.EgressRate.Bits,
		NodeNetNS:      node.NetNS,
		Host:           host,
		UIDs:           node.UIDMap,
		GIDs:           node.GIDMap,
		Cgroup:         cg,
		DefaultHandler: cfg.Runtime.DefaultHandler,
		SeccompProfile: cfg.Runtime.SeccompProfile,
		CDISpecDirs:    cfg.Runtime.CDISpecDirs,
		DNS:            pod.DNS{HostFile: "/etc/resolv.conf", UplinkFile: node.ResolvConf},
		Events:         p.events,
		Stats:          newStats(p.images),
		Log:            slog.Default(),
	})
	p.service = &cri.Service{
		RuntimeVersion: cli.Version(version),
		Runtime:        p.runtime,
		Images:         p.images,
		Network:        network,
		Events:         p.events,
		Cgroup:         cg,
		MissingIDs:     missingIDs(node),
		Info:           func() map[string]any { return info(cfg, node, cg, p.images.Info()) },
		Log:            slog.Default(),
	}
	return p, nil
}

// missingIDs says why the node has one ID only; "" when it has more.
func missingIDs(node *rootless.Node) string {
	if !node.SingleID() {
		return ""
	}
	reason := "the user namespace that it was started in has no other"
	if node.IDReason != "" {
		reason, _, _ = strings.Cut(node.IDReason, "\n") // what follows are commands
	}
	return "the node has one user and one group ID: " + reason + " (see subpod doctor)"
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

// mountDir is where root file systems are mounted: a directory of the node's own
// /run that the root of a pod's own user namespace may pass through, which the
// user's directories are not.
const mountDir = "/run/subpod-rootfs"

func storageOptions(cfg *config.Config, node *rootless.Node) storage.Options {
	o := storage.Options{
		Root:                 filepath.Join(cfg.Daemon.DataDir, "storage"),
		RunRoot:              filepath.Join(cfg.Daemon.RunDir, "storage"),
		Driver:               cfg.Storage.Driver,
		MountProgram:         lookUp(cfg.Storage.MountProgram),
		AdditionalStores:     cfg.Storage.AdditionalImageStores,
		AllowVFS:             cfg.Storage.AllowVFS,
		IgnoreChownErrors:    cfg.Storage.IgnoreChownErrors || node.SingleID(),
		RegistriesConf:       cfg.Images.RegistriesConf,
		PolicyJSON:           cfg.Images.Policy,
		AuthFile:             cfg.Images.AuthFile,
		CertsDir:             cfg.Images.CertsDir,
		MaxParallelDownloads: cfg.Images.MaxParallelDownloads,
		PullTimeout:          cfg.Images.PullTimeout.Duration,
		Pinned:               cfg.Images.Pinned,
		Log:                  slog.Default(),
	}
	// A small image of a container has no /run.
	if !node.Nested && unix.Access(filepath.Dir(mountDir), unix.W_OK) == nil {
		o.MountDir = mountDir
	}
	return o
}

// ociOptions leaves out handlers that are not installed, but for the default
// one: without it nothing can run, and the executor says so.
func ociOptions(cfg *config.Config, cg cgroup.Delegation) oci.Options {
	o := oci.Options{
		Conmon:        cfg.Runtime.ConmonPath,
		Handlers:      map[string]oci.Handler{},
		RunDir:        cfg.Daemon.RunDir,
		CgroupManager: cg.Driver,
		Log:           slog.Default(),
	}
	if cg.Driver == cgroup.DriverSystemd {
		o.CgroupManager = cgroup.DriverCgroupfs // inside of scopes: see cgroup.Pod.Place
	}
	for name, h := range cfg.Runtime.Handlers {
		if _, err := exec.LookPath(h.Path); err != nil && name != cfg.Runtime.DefaultHandler {
			slog.Info("a runtime handler is not installed", "handler", name, "path", h.Path)
			continue
		}
		o.Handlers[name] = oci.Handler{Name: name, Path: h.Path, Args: h.Args}
	}
	return o
}

// lookUp finds a program in PATH; what is not there stays as it is, for the
// error of whoever needs it.
func lookUp(program string) string {
	if path, err := exec.LookPath(program); err == nil {
		return path
	}
	return program
}

// info is what the verbose status tells.
func info(cfg *config.Config, node *rootless.Node, cg cgroup.Delegation, images storage.Info) map[string]any {
	return map[string]any{
		"uplink":  map[string]string{"name": node.Uplink, "reason": node.UplinkReason, "limits": rootless.UplinkLimits(node.Uplink)},
		"config":  cfg,
		"node":    node,
		"cgroup":  cg,
		"storage": images,
		"server":  map[string]any{"pid": os.Getpid(), "goroutines": runtime.NumGoroutine()},
	}
}
