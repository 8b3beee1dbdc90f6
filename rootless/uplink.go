package rootless

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/rootless-containers/rootlesskit/v3/pkg/api"
	"github.com/rootless-containers/rootlesskit/v3/pkg/messages"
	"github.com/rootless-containers/rootlesskit/v3/pkg/network"
	pastadriver "github.com/rootless-containers/rootlesskit/v3/pkg/network/pasta"
	"github.com/rootless-containers/rootlesskit/v3/pkg/network/slirp4netns"
	"golang.org/x/sys/unix"
)

// Uplinks: what connects the node network namespace to the host.
const (
	UplinkSlirp = "slirp4netns"
	UplinkPasta = "pasta"
	// UplinkGvisor is a network stack in the node's own processes. It needs no program
	// but GvisorBinary.
	UplinkGvisor = "gvisor-tap-vsock"
	UplinkNone   = "none" // loopback only; host ports still work
	// UplinkHost makes no node network namespace: pods are in the network that the
	// daemon was started in.
	UplinkHost = "host"
	// UplinkAuto is slirp4netns, or UplinkHost in a container that has no
	// /dev/net/tun.
	UplinkAuto = "auto"
)

// UplinkDriver is an uplink that only some of the binaries have: they pass it to Dispatch.
type UplinkDriver struct {
	Name   string // one of Uplinks
	Parent func(Config) (network.ParentDriver, error)
	Child  func() network.ChildDriver
}

// driver returns the one for c.Uplink that this process was given, if any.
func (c Config) driver() (UplinkDriver, bool) {
	i := slices.IndexFunc(c.drivers, func(d UplinkDriver) bool { return d.Name == c.Uplink })
	if i < 0 {
		return UplinkDriver{}, false
	}
	return c.drivers[i], true
}

// maxMTU is the largest that slirp4netns and pasta take.
const maxMTU = 65521

// ErrBadUplink names an unknown uplink and the known ones.
var ErrBadUplink = errors.New("unknown uplink")

// Uplinks lists the known values of Config.Uplink, the default first.
func Uplinks() []string {
	return []string{UplinkAuto, UplinkSlirp, UplinkPasta, UplinkGvisor, UplinkNone, UplinkHost}
}

// ownNetwork reports whether the node has a network namespace of its own.
func (c Config) ownNetwork() bool { return c.Uplink != UplinkHost }

func newUplink(c Config) (network.ParentDriver, error) {
	var (
		d   network.ParentDriver
		err error
	)
	switch c.Uplink {
	case UplinkSlirp:
		d, err = newSlirp(c)
	case UplinkPasta:
		d, err = newPasta(c)
	case UplinkNone:
		d = noUplink{}
	default:
		more, ok := c.driver()
		if !ok {
			return nil, fmt.Errorf("%w: uplink %s is a part of %s, which has to lie beside subpod", ErrMissingProgram, c.Uplink, GvisorBinary)
		}
		d, err = more.Parent(c)
	}
	if err != nil {
		return nil, fmt.Errorf("set up uplink %s: %w", c.Uplink, err)
	}
	return d, nil
}

func newUplinkChild(c Config) network.ChildDriver {
	switch c.Uplink {
	case UplinkSlirp:
		return tapChild{slirp4netns.NewChildDriver(), c}
	case UplinkPasta:
		return tapChild{pastadriver.NewChildDriver(), c}
	case UplinkNone:
		return noUplink{}
	}
	more, _ := c.driver() // the parent has it, which is the same program
	return more.Child()
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

// hostDNS returns the host's DNS servers, as its resolv.conf(5) lists them; "" when it
// cannot be read, which happens while it is being replaced.
func hostDNS() string {
	text, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return ""
	}
	var servers []string
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "nameserver" {
			servers = append(servers, f[1])
		}
	}
	return strings.Join(servers, " ")
}

// fallBack takes the first of UplinkFallback whose program is there when that of the
// chosen uplink is missing, has a fault or may not start, and says so in UplinkReason. One with a fault
// is better than none.
func (c Config) fallBack(h Host) Config {
	programs := map[string]string{UplinkSlirp: c.SlirpBinary, UplinkPasta: c.PastaBinary,
		UplinkGvisor: filepath.Join(filepath.Dir(h.Executable), GvisorBinary)}
	missing := func(uplink string) bool {
		if programs[uplink] == "" {
			return false
		}
		_, err := h.LookPath(programs[uplink])
		return err != nil
	}
	fault := func(uplink string) string {
		if programs[uplink] == "" || c.UplinkFault == nil {
			return ""
		}
		return c.UplinkFault(uplink)
	}
	offline, way := h.NoIPv4 && (h.NoIPv6 || !c.IPv6), "this host has no way out by IPv4"
	if h.NoIPv6 {
		way = "this host has no way out"
	}
	gone, reason := missing(c.Uplink), ""
	if gone {
		reason = programs[c.Uplink] + " is not installed"
	} else if c.Uplink == UplinkPasta && offline {
		// It looks for its interface once; older ones end there.
		gone, reason = true, way+" now, and pasta may not start without one"
	} else if reason = fault(c.Uplink); reason == "" {
		return c
	}
	there := func(faults bool) string {
		for _, next := range c.UplinkFallback {
			if next != c.Uplink && !missing(next) && !(next == UplinkPasta && offline) && (faults || fault(next) == "") {
				return next
			}
		}
		return ""
	}
	next := there(false)
	if next == "" && gone {
		next = there(true)
		c.faulty = next != ""
	}
	switch {
	case next != "":
		c.UplinkReason = fmt.Sprintf("%s; %s is next in node.uplink_fallback", reason, next)
		c.Uplink, c.fellBack = next, true
	case !gone:
		c.UplinkReason, c.fellBack, c.faulty = reason+"; no other uplink of node.uplink_fallback is installed", true, true
	}
	return c
}

// UplinkLimits describes what an uplink cannot do on this host. noIPv6 is why it has IPv4
// only, "" where it has both.
func UplinkLimits(uplink, noIPv6 string) string {
	only := ""
	if noIPv6 != "" {
		only = "IPv4 only (" + noIPv6 + "); "
	}
	switch uplink {
	case UplinkSlirp:
		return only + "every packet passes through one process: about a third of the speed of loopback; existing connections are lost when it is restarted" + pingLimit()
	case UplinkPasta:
		return only + "every packet passes through one process; started again when the host's DNS servers change, or it gets a way out by IPv4 or IPv6 that it had not, which ends connections" + pingLimit()
	case UplinkGvisor:
		return only + "every packet passes through two processes of the node; ICMP echo to the outside is answered by the uplink itself, whether or not anyone is there"
	case UplinkNone:
		return "pods reach each other and nothing else; host ports work"
	case UplinkHost:
		return "pods share the network that the daemon was started in: no addresses of their own, no isolation"
	}
	return ""
}

// pingLimit says so when the caller may not send ICMP echo requests without privileges
// (icmp(7), ping_group_range), and with it the uplink for the pods.
func pingLimit() string {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
	if err != nil {
		return "; no ICMP echo to the outside, unless: sudo sysctl -w net.ipv4.ping_group_range='0 2147483647'"
	}
	unix.Close(fd)
	return ""
}
