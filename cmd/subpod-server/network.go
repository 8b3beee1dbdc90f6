package main

import (
	"log/slog"
	"path/filepath"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/netns/auto"
	"github.com/subpod/subpod/netns/bridge"
	"github.com/subpod/subpod/netns/cni"
	"github.com/subpod/subpod/pkg/config"
	"github.com/subpod/subpod/rootless"
)

// newNetwork is what network.backend asks for, or nothing where pods have no
// network of their own.
func newNetwork(cfg *config.Config, node *rootless.Node, nodeThread *netns.Thread, ports *portForwarder) (netns.Network, error) {
	if node.Uplink == rootless.UplinkHost {
		return netns.HostNetwork{}, nil
	}
	dir := filepath.Join(cfg.Daemon.DataDir, "net")
	newBridge := func() (*bridge.Bridge, error) {
		return bridge.New(bridge.Options{
			Thread: nodeThread, StateDir: dir, RunDir: filepath.Join(cfg.Daemon.RunDir, "net"), Ports: ports.network(), Log: slog.Default(),
			Subnets: cfg.Network.Subnets, Name: cfg.Network.Bridge, MTU: cfg.Network.MTU,
			Isolate: cfg.Network.Isolate,
		})
	}
	newCNI := func(skip func(string) bool) (*cni.Network, error) {
		return cni.New(cni.Options{
			Thread: nodeThread, StateDir: filepath.Join(dir, "cni"), Ports: ports.network(), Log: slog.Default(),
			ConfDirs: cfg.Network.CNIConfDirs, BinDirs: cfg.Network.CNIBinDirs, Skip: skip,
		})
	}
	switch cfg.Network.Backend {
	case "bridge":
		return newBridge()
	case "cni":
		return newCNI(nil)
	}
	b, err := newBridge()
	if err != nil {
		return nil, err
	}
	c, err := newCNI(auto.NotOurs)
	if err != nil {
		return nil, err
	}
	return auto.New(c, b, slog.Default()), nil
}
