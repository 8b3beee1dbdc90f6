package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/cmd/internal/cli"
	"github.com/subpod/subpod/pkg/config"
	"github.com/subpod/subpod/pkg/nri"
	"github.com/subpod/subpod/pkg/pod"
	"github.com/subpod/subpod/pkg/pod/container"
	"github.com/subpod/subpod/pkg/state"
)

// newPlugins prepares for NRI plugins; nil where they are not wanted.
func (d *dependencies) newPlugins(cfg *config.Config) *nri.Plugins {
	if !cfg.Runtime.NRI {
		return nil
	}
	plugins, err := nri.New(nri.Options{
		Socket:  filepath.Join(cfg.Daemon.RunDir, "nri", "nri.sock"),
		Version: cli.Version(version),
		List:    func() ([]state.Pod, []state.Container) { return d.state.Pods(), d.state.Containers() },
		Spec:    ociSpec,
		Limit: func(ctx context.Context, id string, change *runtimeapi.LinuxContainerResources) error {
			return pod.LimitContainer(ctx, d.manager, id, change)
		},
		Kill: func(ctx context.Context, id string) error { return d.manager.StopContainer(ctx, id, 0) },
		Log:  slog.Default(),
	})
	if err != nil {
		slog.Error("there can be no NRI plugins", "error", err)
		return nil
	}
	return plugins
}

// ociSpec returns the OCI specification that a container was created from; nil when there is
// none any more.
func ociSpec(c state.Container) *specs.Spec {
	text, err := container.RuntimeSpec(c)
	if err != nil || text == nil {
		return nil
	}
	spec := &specs.Spec{}
	if err := json.Unmarshal(text, spec); err != nil {
		return nil
	}
	return spec
}

// startPlugins lets NRI plugins connect.
func (d *dependencies) startPlugins() {
	if d.plugins == nil {
		return
	}
	if err := d.plugins.Start(); err != nil {
		slog.Error("NRI plugins cannot connect", "error", err)
	}
}
