package rootless

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/rootless-containers/rootlesskit/v3/pkg/api/client"
	"github.com/rootless-containers/rootlesskit/v3/pkg/port"
	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/errclass"
)

// exposeTimeout bounds the port driver's answer, which listens at once.
const exposeTimeout = 10 * time.Second

// PortSpec forwards a port of the host to an address in the node network.
type PortSpec struct {
	Proto string // "tcp" or "udp"
	// HostIP to listen on; the zero Addr means all addresses, IPv4 and IPv6.
	HostIP     netip.Addr
	HostPort   uint16
	TargetIP   netip.Addr
	TargetPort uint16
}

// String returns the forwarding as it is written in errors and logs.
func (s PortSpec) String() string {
	host := ""
	if s.HostIP.IsValid() {
		host = s.HostIP.String()
	}
	return fmt.Sprintf("%s %s to %s", s.Proto, net.JoinHostPort(host, strconv.Itoa(int(s.HostPort))),
		netip.AddrPortFrom(s.TargetIP, s.TargetPort))
}

var (
	// ErrPortTaken: something else listens on the host port.
	ErrPortTaken = errors.New("host port is in use")
	// ErrPortPrivileged: an ordinary user may not listen on the host port. The
	// text has the command that changes this.
	ErrPortPrivileged = errclass.New(errdefs.ErrPermissionDenied, "host port is privileged")
	// ErrBadPort: the PortSpec makes no sense.
	ErrBadPort = errors.New("bad port specification")
	// ErrNoPortDriver: a nested node has none; its ports are those of the
	// network namespace that it was started in.
	ErrNoPortDriver = errors.New("the node has no port driver")
)

// Expose makes the host listen for s and forward to the node. The ID is for
// Unexpose and lasts as long as the node, also when the server restarts.
// ErrPortTaken, ErrPortPrivileged, ErrBadPort, ErrNoPortDriver. To be called by
// the server, which is in the host's network namespace. A call that has begun is not
// interrupted by the end of ctx: the port would be taken, and nobody know its ID.
func (n *Node) Expose(ctx context.Context, s PortSpec) (id int, err error) {
	spec, err := s.rootlesskit()
	if err != nil {
		return 0, err
	}
	pm, done, err := n.ports()
	if err != nil {
		return 0, err
	}
	defer done()
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), exposeTimeout)
	defer cancel()
	st, err := pm.AddPort(ctx, spec)
	if err == nil {
		return st.ID, nil
	}
	reason := explainPort(s)
	if reason == nil { // whoever had it has let go of it by now
		if st, err = pm.AddPort(ctx, spec); err == nil {
			return st.ID, nil
		}
		reason = cmp.Or(explainPort(s), err)
	}
	return 0, fmt.Errorf("forward %s: %w", s, reason)
}

// Unexpose ends a forwarding; connections through it are closed. Idempotent:
// an unknown ID is no error.
func (n *Node) Unexpose(ctx context.Context, id int) error {
	pm, done, err := n.ports()
	if err != nil {
		return err
	}
	defer done()
	err = pm.RemovePort(ctx, id)
	if err == nil {
		return nil
	}
	list, listErr := pm.ListPorts(ctx)
	if listErr == nil && !slices.ContainsFunc(list, func(p port.Status) bool { return p.ID == id }) {
		return nil
	}
	return fmt.Errorf("end port forwarding %d: %w", id, errors.Join(err, listErr))
}

// Exposed lists what is forwarded, by ID.
func (n *Node) Exposed(ctx context.Context) (map[int]PortSpec, error) {
	pm, done, err := n.ports()
	if err != nil {
		return nil, err
	}
	defer done()
	list, err := pm.ListPorts(ctx)
	if err != nil {
		return nil, fmt.Errorf("list port forwardings: %w", err)
	}
	out := make(map[int]PortSpec, len(list))
	for _, p := range list {
		s := PortSpec{
			Proto:    strings.TrimRight(p.Spec.Proto, "46"),
			HostPort: uint16(p.Spec.ParentPort), TargetPort: uint16(p.Spec.ChildPort),
		}
		// Both are what Expose has put there.
		s.HostIP, _ = netip.ParseAddr(p.Spec.ParentIP)
		s.TargetIP, _ = netip.ParseAddr(p.Spec.ChildIP)
		out[p.ID] = s
	}
	return out, nil
}

func (n *Node) ports() (port.Manager, func(), error) {
	if n.PortSocket == "" {
		return nil, nil, ErrNoPortDriver
	}
	c, err := client.New(n.PortSocket)
	if err != nil {
		return nil, nil, fmt.Errorf("reach the port driver: %w", err)
	}
	return c.PortManager(), func() { c.Close() }, nil
}

// rootlesskit returns s as the port driver's type.
func (s PortSpec) rootlesskit() (port.Spec, error) {
	if s.Proto != "tcp" && s.Proto != "udp" {
		return port.Spec{}, fmt.Errorf("%w: protocol %q, want tcp or udp", ErrBadPort, s.Proto)
	}
	if s.HostPort == 0 || s.TargetPort == 0 || !s.TargetIP.IsValid() {
		return port.Spec{}, fmt.Errorf("%w: %s", ErrBadPort, s)
	}
	spec := port.Spec{
		Proto: s.Proto, ParentPort: int(s.HostPort),
		ChildIP: s.TargetIP.Unmap().String(), ChildPort: int(s.TargetPort),
	}
	if s.HostIP.IsValid() {
		spec.ParentIP = s.HostIP.Unmap().String()
		spec.Proto = s.network()
	}
	return spec, nil
}

// network is the name of the listener's network: plain "tcp" and "udp" would
// turn 0.0.0.0 into all addresses of both families.
func (s PortSpec) network() string {
	switch {
	case !s.HostIP.IsValid():
		return s.Proto
	case s.HostIP.Unmap().Is4():
		return s.Proto + "4"
	default:
		return s.Proto + "6"
	}
}

// explainPort finds the reason of a refusal, nil when there is none by now. The port
// driver's API has only text, so we try what it tried: we are in the same network
// namespace.
func explainPort(s PortSpec) error {
	host := ""
	if s.HostIP.IsValid() {
		host = s.HostIP.Unmap().String()
	}
	addr := net.JoinHostPort(host, strconv.Itoa(int(s.HostPort)))
	var err error
	if s.Proto == "udp" {
		var c net.PacketConn
		if c, err = net.ListenPacket(s.network(), addr); err == nil {
			c.Close()
		}
	} else {
		var l net.Listener
		if l, err = net.Listen(s.network(), addr); err == nil {
			l.Close()
		}
	}
	switch {
	case errors.Is(err, unix.EACCES):
		start := "1024"
		if b, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start"); err == nil {
			start = strings.TrimSpace(string(b))
		}
		return fmt.Errorf("%w: ports below net.ipv4.ip_unprivileged_port_start (%s) are root's; to allow this one: "+
			"sudo sysctl -w net.ipv4.ip_unprivileged_port_start=%d (and put it into /etc/sysctl.d to last)", ErrPortPrivileged, start, s.HostPort)
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("%w: see by what (ss -lnp 'sport = :%d'), stop that or choose another host port", ErrPortTaken, s.HostPort)
	default:
		return err
	}
}
