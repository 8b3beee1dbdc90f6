package rootless

import (
	"context"
	"log/slog"
	"net"
	"os/exec"

	"github.com/rootless-containers/rootlesskit/v3/pkg/api"
	"github.com/rootless-containers/rootlesskit/v3/pkg/messages"
)

// What slirp4netns serves by default (slirp4netns(1)), and pasta is told to serve.
const (
	slirpTap     = UplinkInterface
	slirpAddress = "10.0.2.100"
	slirpBits    = 24
	slirpGateway = "10.0.2.2"
	slirpDNS     = "10.0.2.3"
	slirpMTU     = 65520
)

// tapUplink is what slirp4netns and pasta have in common: a program that serves a tap in the
// node network namespace, with the same addresses.
type tapUplink struct {
	name                string // UplinkSlirp or UplinkPasta
	binary              string
	mtu                 int
	disableHostLoopback bool
	ipv6                bool
	log                 *slog.Logger
}

func newTapUplink(name, program string, c Config) (tapUplink, error) {
	path, err := exec.LookPath(program)
	if err != nil {
		return tapUplink{}, err
	}
	u := tapUplink{name: name, binary: path, mtu: c.MTU, disableHostLoopback: c.DisableHostLoopback, ipv6: c.IPv6, log: c.Log}
	if u.mtu == 0 {
		u.mtu = slirpMTU
	}
	return u, nil
}

// Info implements network.ParentDriver.
func (u tapUplink) Info(context.Context) (*api.NetworkDriverInfo, error) {
	info := &api.NetworkDriverInfo{Driver: u.name, ChildIP: net.ParseIP(slirpAddress), IPv6: u.ipv6}
	for _, server := range u.dns(hostDNS()) {
		info.DNS = append(info.DNS, net.ParseIP(server))
	}
	return info, nil
}

// MTU implements network.ParentDriver.
func (u tapUplink) MTU() int { return u.mtu }

// configuration is what the child configures.
func (u tapUplink) configuration() *messages.ParentInitNetworkDriverCompleted {
	return &messages.ParentInitNetworkDriverCompleted{
		Dev: slirpTap, MTU: u.mtu, DNS: u.dns(hostDNS()),
		IP: slirpAddress, Netmask: slirpBits, Gateway: slirpGateway,
	}
}
