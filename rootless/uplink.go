package rootless

import (
	"context"
	"errors"
	"fmt"

	"github.com/rootless-containers/rootlesskit/v3/pkg/api"
	"github.com/rootless-containers/rootlesskit/v3/pkg/messages"
	"github.com/rootless-containers/rootlesskit/v3/pkg/network"
	"github.com/rootless-containers/rootlesskit/v3/pkg/network/pasta"
	"github.com/rootless-containers/rootlesskit/v3/pkg/network/slirp4netns"
)

// Uplinks: what connects the node network namespace to the host.
const (
	UplinkSlirp = "slirp4netns"
	UplinkPasta = "pasta"
	UplinkNone  = "none" // loopback only; host ports still work
	// UplinkHost makes no node network namespace: pods are in the network that the
	// daemon was started in.
	UplinkHost = "host"
	// UplinkAuto is slirp4netns, but UplinkHost in a container that has no
	// /dev/net/tun.
	UplinkAuto = "auto"
)

// maxMTU is the largest that slirp4netns and pasta take.
const maxMTU = 65521

// ErrBadUplink names an unknown uplink and the known ones.
var ErrBadUplink = errors.New("unknown uplink")

// Uplinks lists the known values of Config.Uplink, the default first.
func Uplinks() []string {
	return []string{UplinkAuto, UplinkSlirp, UplinkPasta, UplinkNone, UplinkHost}
}

// ownNetwork reports whether the node has a network namespace of its own.
func (c Config) ownNetwork() bool { return c.Uplink != UplinkHost }

func newUplink(c Config) (network.ParentDriver, error) {
	out := debugWriter{c.Log, c.Uplink}
	var (
		d   network.ParentDriver
		err error
	)
	switch c.Uplink {
	case UplinkSlirp:
		d, err = newSlirp(c)
	case UplinkPasta:
		// No implicit forwarding: host ports are the port driver's.
		d, err = pasta.NewParentDriver(out, c.PastaBinary, c.MTU, nil, "", "", c.DisableHostLoopback, false, false)
	case UplinkNone:
		d = noUplink{}
	default:
		return nil, fmt.Errorf("%w %q: known are %q", ErrBadUplink, c.Uplink, Uplinks())
	}
	if err != nil {
		return nil, fmt.Errorf("set up uplink %s: %w", c.Uplink, err)
	}
	return d, nil
}

func newUplinkChild(c Config) network.ChildDriver {
	switch c.Uplink {
	case UplinkSlirp:
		return slirp4netns.NewChildDriver()
	case UplinkPasta:
		return pasta.NewChildDriver()
	default:
		return noUplink{}
	}
}

// noUplink is both ends of a node network with nothing but loopback.
type noUplink struct{}

// Info implements network.ParentDriver.
func (noUplink) Info(context.Context) (*api.NetworkDriverInfo, error) {
	return &api.NetworkDriverInfo{Driver: UplinkNone}, nil
}

// MTU implements network.ParentDriver.
func (noUplink) MTU() int { return 0 }

// ConfigureNetwork implements network.ParentDriver.
func (noUplink) ConfigureNetwork(int, string, string) (*messages.ParentInitNetworkDriverCompleted, func() error, error) {
	return &messages.ParentInitNetworkDriverCompleted{}, nil, nil
}

// ConfigureNetworkChild implements network.ChildDriver. Rootlesskit itself
// brings up loopback.
func (noUplink) ConfigureNetworkChild(*messages.ParentInitNetworkDriverCompleted, string) (string, error) {
	return "", nil
}

// ChildDriverInfo implements network.ChildDriver.
func (noUplink) ChildDriverInfo() (*network.ChildDriverInfo, error) {
	return &network.ChildDriverInfo{ConfiguresInterface: true}, nil
}
