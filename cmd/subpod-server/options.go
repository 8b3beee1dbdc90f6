package main

import (
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/cgroup"
	"github.com/subpod/subpod/pkg/config"
	"github.com/subpod/subpod/pkg/oci"
	"github.com/subpod/subpod/rootless"
	"github.com/subpod/subpod/storage"
)

// missingIDs returns why the node has one ID only; "" when it has more.
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

// mountDir is where root file systems are mounted: a directory of the node's own
// /run, which the root of a pod's own user namespace may traverse; the user's own
// directories it may not.
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
		Limits:               imageLimits(cfg.Images.Limits),
		Log:                  slog.Default(),
	}
	// A small image of a container has no /run.
	if !node.Nested && unix.Access(filepath.Dir(mountDir), unix.W_OK) == nil {
		o.MountDir = mountDir
	}
	return o
}

func imageLimits(l config.Limits) storage.Limits {
	return storage.Limits{
		Manifest: l.Manifest.Bytes, Config: l.Config.Bytes,
		User: int64(l.User), Env: l.Env.Bytes, Labels: l.Labels.Bytes,
		Layers: int64(l.Layers), Entries: int64(l.Entries), Names: int64(l.Names),
		Size: l.Size.Bytes, Memory: l.Memory.Bytes,
	}
}

// ociOptions leaves out handlers that are not installed, except the default one:
// without it nothing can run, and oci.New returns the error.
func ociOptions(cfg *config.Config, cg cgroup.Delegation, node *rootless.Node) oci.Options {
	o := oci.Options{
		Conmon:        cfg.Runtime.ConmonPath,
		Handlers:      map[string]oci.Handler{},
		RunDir:        cfg.Daemon.RunDir,
		Monitor:       cfg.Runtime.Monitor,
		MonitorSocket: node.MonitorSocket,
		CgroupManager: cg.Driver,
		Log:           slog.Default(),
	}
	if exe, err := os.Executable(); err == nil {
		o.MonitorProgram = filepath.Join(filepath.Dir(exe), rootless.MonitorBinary)
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

// lookUp finds a program in PATH. A name that is not there is returned as it is, for
// the error of whoever runs it.
func lookUp(program string) string {
	if path, err := exec.LookPath(program); err == nil {
		return path
	}
	return program
}
