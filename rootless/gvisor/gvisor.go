// Package gvisor is the uplink gvisor-tap-vsock for the binaries that want it. It is no
// part of package rootless because it makes each of the node's processes bigger, used
// or not.
package gvisor

import (
	"fmt"
	"io"
	"net"
	"path/filepath"

	"github.com/rootless-containers/rootlesskit/v3/pkg/network"
	"github.com/rootless-containers/rootlesskit/v3/pkg/network/gvisortapvsock"

	"github.com/subpod/subpod/rootless"
)

// Uplink is the uplink to be passed to rootless.Dispatch.
func Uplink() rootless.UplinkDriver {
	return rootless.UplinkDriver{Name: rootless.UplinkGvisor, Parent: newParent, Child: gvisortapvsock.NewChildDriver}
}

// newParent serves the subnet of the other uplinks. Its gateway, 10.0.2.1, answers DNS.
func newParent(c rootless.Config) (network.ParentDriver, error) {
	if socket := filepath.Join(c.RunDir, "node/gvisortapvsock/tap.sock"); len(socket) > rootless.MaxSocket {
		return nil, fmt.Errorf("%w: run directory %q is too long for the uplink's socket (%d bytes over)",
			rootless.ErrBadConfig, c.RunDir, len(socket)-rootless.MaxSocket)
	}
	subnet := &net.IPNet{IP: net.IPv4(10, 0, 2, 0).To4(), Mask: net.CIDRMask(24, 32)}
	const ipv6 = false
	return gvisortapvsock.NewParentDriver(io.Discard, c.MTU, subnet, "tap0", c.DisableHostLoopback, ipv6)
}
