package main

import (
	"log/slog"
	"path/filepath"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/netns/auto"
	"github.com/subpod/subpod/netns/bridge"
	"github.com/subpod/subpod/netns/cni"
	"github.com/subpod/subpod/netns/named"
	"github.com/subpod/subpod/pkg/config"
	"github.com/subpod/subpod/pkg/hostport"
	"github.com/subpod/subpod/pkg/pod/sandbox"
	"github.com/subpod/subpod/rootless"
)

// newNetwork returns the implementation that network.backend names, or
// netns.HostNetwork where pods have no network of their own.
func newNetwork(cfg *config.Config, node *rootless.Node, nodeNet *netns.Thread, ports *hostport.Forwarder) (netns.Network, error) {
	if node.Uplink == rootless.UplinkHost {
		return netns.HostNetwork{}, nil
	}
	if cfg.Node.DisableHostLoopback && node.NetNS != "" && node.Uplink != rootless.UplinkNone {
		if _, err := bridge.GuardUplink(nodeNet, rootless.UplinkInterface, slog.Default()); err != nil {
			slog.Warn("a pod on the node's network may reach the host's loopback by packets that it makes itself", "error", err)
		}
	}
	dir := filepath.Join(cfg.Daemon.DataDir, "net")
	var networks *named.Networks
	newBridge := func() (*bridge.Bridge, error) {
		return bridge.New(bridge.Options{
			Thread: nodeNet, StateDir: dir, RunDir: filepath.Join(cfg.Daemon.RunDir, "net"), Ports: ports.Network(), Log: slog.Default(),
			Subnets: cfg.Network.Subnets, Name: cfg.Network.Bridge, MTU: cfg.Network.MTU,
			Isolate: cfg.Network.Isolate, WaitForPodCIDR: cfg.Network.WaitForPodCIDR, Congestion: rootless.UplinkCongestion(node.Uplink), Remade: func() { networks.BridgeRemade() },
		})
	}
	newCNI := func(skip func(string) bool) (*cni.Network, error) {
		return cni.New(cni.Options{
			Thread: nodeNet, StateDir: filepath.Join(dir, "cni"), Ports: ports.Network(), Log: slog.Default(),
			ConfDirs: cfg.Network.CNIConfDirs, BinDirs: cfg.Network.CNIBinDirs, Skip: skip,
		})
	}
	switch cfg.Network.Backend {
	case "bridge":
		b, err := newBridge()
		if err != nil {
			return nil, err
		}
		networks, err = newNamed(cfg, node, nodeNet, ports, b, b, nil)
		return networks, err
	case "cni":
		c, err := newCNI(nil)
		if err != nil {
			return nil, err
		}
		return newNamed(cfg, node, nodeNet, ports, c, nil, func() string {
			return "pods are connected by CNI plugins (network.backend), which have networks of their own"
		})
	}
	b, err := newBridge()
	if err != nil {
		return nil, err
	}
	c, err := newCNI(auto.NotOurs)
	if err != nil {
		return nil, err
	}
	networks, err = newNamed(cfg, node, nodeNet, ports, auto.New(c, b, slog.Default()), b, func() string {
		if conf := c.Configured(); conf != "" {
			return "pods are connected by the CNI configuration " + conf + ", which has networks of its own"
		}
		return ""
	})
	return networks, err
}

// newNamed returns the named networks beside a base that falls back to the bridge.
func newNamed(cfg *config.Config, node *rootless.Node, nodeNet *netns.Thread, ports *hostport.Forwarder, base netns.Network, b *bridge.Bridge, foreign func() string) (*named.Networks, error) {
	return named.New(named.Options{
		Base: base, Bridge: b, Foreign: foreign, Thread: nodeNet, Ports: ports.Network(), Held: rootless.Held(), Isolate: cfg.Network.Isolate, Log: slog.Default(),
		Congestion: rootless.UplinkCongestion(node.Uplink),
		StateDir:   filepath.Join(cfg.Daemon.DataDir, "net", "networks"),
		RunDir:     filepath.Join(cfg.Daemon.RunDir, "net", "networks"),
		Upstreams:  dnsOf(node).Servers,
	})
}

// dnsOf returns where pods of the node have their servers from.
func dnsOf(node *rootless.Node) sandbox.DNS {
	return sandbox.DNS{HostFile: "/etc/resolv.conf", UplinkFile: node.ResolvConf}
}
