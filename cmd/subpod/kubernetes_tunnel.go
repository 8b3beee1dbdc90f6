package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/subpod/subpod/cmd/internal/kubelet"
	"github.com/subpod/subpod/cmd/internal/nodes"
	"github.com/subpod/subpod/netns/tunnel"
	"github.com/subpod/subpod/rootless"
)

const (
	// tunnelPort is WireGuard's usual one.
	tunnelPort = 51820
	// tunnelRetry is the pause before the API server is asked again.
	tunnelRetry = 2 * time.Second
	// tunnelSocket is the descriptor of the UDP socket in the node.
	tunnelSocket = 3
)

func newKubernetesTunnel(a *app) *cobra.Command {
	var inside bool
	var listen string
	mtu := tunnel.DefaultMTU
	cmd := &cobra.Command{
		Use:   "tunnel",
		Short: "Join the pods of this node with those of the cluster's other nodes, in the foreground",
		Long: `Leads packets between the pods of the cluster's nodes that run it, where no CNI plugin does:
WireGuard in user mode, by one UDP port of the host. The nodes know each other's keys and
addresses by annotations of their Node objects (` + nodes.AnnotationKey + `, ` + nodes.AnnotationPort + `);
each has a key of its own, ` + kubelet.TunnelKey + ` in the node.

The nodes' own addresses are reached by it, too: an API server reaches a kubelet's port 10250
without that being open on the host.

It waits for kubeadm init or join. Nodes may not read each other by default, so the cluster
allows it once: subpod nsenter -- kubectl --kubeconfig=/etc/kubernetes/admin.conf apply -f ` + kubelet.Dir + `/tunnel.yaml`,
		Example: "  subpod kubernetes config --write --node-ip 192.0.2.7\n  subpod kubernetes tunnel",
		Args:    exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if mtu < 1280 || mtu > 65000 {
				return usagef("--mtu %d is not between 1280 and 65000", mtu)
			}
			if inside {
				return runTunnel(cmd.Context(), mtu)
			}
			return enterTunnel(cmd, a, listen, mtu)
		},
	}
	cmd.Flags().StringVar(&listen, "listen", ":"+strconv.Itoa(tunnelPort), "`address:port` of the host, UDP; all its addresses without one")
	cmd.Flags().IntVar(&mtu, "mtu", mtu, "largest packet in the tunnel, 80 bytes less than between the hosts")
	cmd.Flags().BoolVar(&inside, "in-node", false, "the caller is in the node")
	must(cmd.Flags().MarkHidden("in-node"))
	return cmd
}

// enterTunnel opens the socket here, in the host's network namespace, and hands it to
// the same program in the node.
func enterTunnel(cmd *cobra.Command, a *app, listen string, mtu int) error {
	cfg, err := clientConfig(a.flags, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	address, err := net.ResolveUDPAddr("udp", listen)
	if err != nil {
		return usageError{fmt.Errorf("--listen: %w", err)}
	}
	socket, err := net.ListenUDP("udp", address)
	if err != nil {
		return fmt.Errorf("open the tunnel's port: %w: another one with --listen", err)
	}
	file, err := socket.File()
	if err := errors.Join(err, socket.Close()); err != nil {
		return err
	}
	defer file.Close()
	argv := []string{exe, "kubernetes", "tunnel", "--in-node", "--mtu", strconv.Itoa(mtu)}
	code, err := rootless.Enter(cmd.Context(), cfg.Daemon.RunDir, argv,
		rootless.EnterOptions{Dir: "/", Stdout: os.Stdout, Stderr: os.Stderr, Files: []*os.File{file}})
	if err == nil && code != 0 {
		err = exitStatus(code)
	}
	return err
}

// runTunnel is the part in the node.
func runTunnel(ctx context.Context, mtu int) error {
	socket, err := inheritedSocket()
	if err != nil {
		return err
	}
	defer socket.Close()
	args, err := kubelet.Args(ctx, "") // waits for kubeadm
	if err == nil {
		err = kubelet.CheckNodeIP(args)
	}
	if err != nil {
		return err
	}
	key, err := tunnel.LoadPrivateKey(kubelet.TunnelKey)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	t, err := tunnel.Open(ctx, tunnel.Options{Socket: socket, Key: key, MTU: mtu, Log: log})
	if err != nil {
		return err
	}
	defer t.Close()
	local, _ := socket.LocalAddr().(*net.UDPAddr)
	f := &follower{tunnel: t, log: log, annotations: map[string]string{
		nodes.AnnotationKey: key.Public().String(), nodes.AnnotationPort: strconv.Itoa(local.Port)}}
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	go func() {
		select {
		case <-t.Wait():
			end(errNoDevice)
		case <-ctx.Done():
		}
	}()
	for {
		err := f.follow(ctx)
		if errors.Is(context.Cause(ctx), errNoDevice) {
			return errNoDevice
		}
		if ctx.Err() != nil {
			return nil // asked to end
		}
		if err != nil {
			f.report(err.Error())
		}
		select {
		case <-ctx.Done():
		case <-time.After(tunnelRetry):
		}
	}
}

var errNoDevice = errors.New("the tunnel's device is gone")

func inheritedSocket() (*net.UDPConn, error) {
	file := os.NewFile(tunnelSocket, "socket")
	defer file.Close()
	c, err := net.FilePacketConn(file)
	if err != nil {
		return nil, fmt.Errorf("--in-node is for \"subpod kubernetes tunnel\": %w", err)
	}
	udp, ok := c.(*net.UDPConn)
	if !ok {
		c.Close()
		return nil, errors.New("the tunnel's socket is no UDP socket")
	}
	return udp, nil
}

// follower makes the tunnel what the cluster's nodes say.
type follower struct {
	tunnel      *tunnel.Tunnel
	annotations map[string]string // of this node
	log         *slog.Logger
	said        []string // by report, since the last success
}

// follow follows the nodes until the API server cannot be asked any more. The tunnel stays
// as it is then.
func (f *follower) follow(ctx context.Context) error {
	client, err := nodes.Open(kubelet.KubeConfig)
	if err != nil {
		return err
	}
	defer client.Close()
	server, err := client.Server(ctx)
	if err != nil {
		return err
	}
	err = client.Follow(ctx, func(all []nodes.Node) error {
		if !nodes.Announced(client.Name(), all, f.annotations) {
			if err := client.Annotate(ctx, f.annotations); err != nil {
				return err
			}
		}
		networks, err := interfaceNetworks()
		if err != nil {
			return err
		}
		c, problems, err := nodes.Plan(client.Name(), all, networks)
		if err != nil {
			return err
		}
		c.Direct = server
		f.said = slices.DeleteFunc(f.said, func(s string) bool { return !slices.Contains(problems, s) })
		for _, p := range problems {
			f.report(p)
		}
		return f.tunnel.Set(ctx, c)
	})
	if errors.Is(err, nodes.ErrForbidden) {
		err = fmt.Errorf("%w\nonce in a cluster: subpod nsenter -- kubectl --kubeconfig=/etc/kubernetes/admin.conf apply -f %s/tunnel.yaml", err, kubelet.Dir)
	}
	return err
}

// interfaceNetworks returns the networks that the node's interfaces are in.
func interfaceNetworks() ([]netip.Prefix, error) {
	found, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var out []netip.Prefix
	for _, a := range found {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			out = append(out, p.Masked())
		}
	}
	return out, nil
}

// report logs a problem, once until it has been solved.
func (f *follower) report(problem string) {
	if !slices.Contains(f.said, problem) {
		f.said = append(f.said, problem)
		f.log.Warn(problem)
	}
}
