package main

import (
	"log/slog"
	"path/filepath"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/netns/egress"
	"github.com/subpod/subpod/netns/named"
	"github.com/subpod/subpod/pkg/config"
	"github.com/subpod/subpod/pkg/pod/sandbox"
	"github.com/subpod/subpod/rootless"
)

// newEgress returns what switches sockets of pods to the host's network; nil, with the reason,
// where that cannot be.
func newEgress(cfg *config.Config, node *rootless.Node, nodeNet *netns.Thread) (*egress.Manager, string) {
	if node.Uplink == rootless.UplinkHost {
		return nil, "pods are in the host's network (node.uplink)"
	}
	m, err := egress.New(egress.Options{
		NetNS:  func(pod string) string { return filepath.Join(cfg.Daemon.RunDir, "pods", pod, "net") },
		Thread: nodeNet,
		Local:  cfg.Network.SwitchedLocal,
		Holder: rootless.Held(),
		Log:    slog.Default(),
	})
	if err != nil {
		slog.Info("connections of pods cannot be switched to the host's network", "reason", err)
		return nil, err.Error()
	}
	return m, ""
}

// egressPolicy says which pods are switched. missing is why there is nothing to switch them.
func egressPolicy(cfg *config.Config, node *rootless.Node, network netns.Network, missing string) sandbox.Egress {
	networks, _ := network.(*named.Networks)
	return sandbox.Egress{
		Always: cfg.Network.SwitchedEgress == "always",
		Off: func() string {
			switch {
			case missing != "":
				return missing
			case cfg.Network.SwitchedEgress == "never":
				return `network.switched_egress is "never"`
			case node.Uplink == rootless.UplinkNone:
				return "pods have no way out (node.uplink)"
			case networks == nil:
				return "the node has no pod network"
			}
			return named.Elsewhere(networks)
		},
		Closed: func(name string) bool { return networks == nil || named.Internal(networks, name) },
	}
}
