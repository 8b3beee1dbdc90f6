package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/signal"
	"strconv"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/client"
)

func newPortForward(a *app) *cobra.Command {
	var address string
	cmd := &cobra.Command{
		Use:   "port-forward [flags] POD [LOCAL_PORT:]PORT...",
		Short: "Forward local ports to a pod",
		Long: `Listens on the host and forwards each connection to a port on the pod's loopback
interface until interrupted. LOCAL_PORT is PORT if omitted; ":PORT" chooses a free
local port.`,
		Example: "  subpod port-forward web 8080:80\n  subpod port-forward db :5432",
		Args:    atLeast(2),
		RunE: a.run(func(cmd *cobra.Command, conn *connection, args []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM)
			defer stop()
			t, err := find(ctx, conn.Client, args[0])
			if err != nil {
				return err
			}
			f := &forwarder{client: conn.Client, podID: t.pod.Id}
			defer f.close()
			for _, arg := range args[1:] {
				local, remote, err := parseForward(arg)
				if err != nil {
					return err
				}
				l, err := f.listen(ctx, net.JoinHostPort(address, strconv.Itoa(local)), remote)
				if err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s -> %d\n", l.Addr(), remote)
			}
			<-ctx.Done()
			return nil
		}),
		ValidArgsFunction: a.completePods,
	}
	cmd.Flags().StringVar(&address, "address", "127.0.0.1", "address to listen on")
	return cmd
}

func parseForward(s string) (local, remote int, err error) {
	l, r, two := strings.Cut(s, ":")
	if !two {
		r = l
	}
	remote, err = strconv.Atoi(r)
	if err == nil && l != "" {
		local, err = strconv.Atoi(l)
	}
	if err != nil || remote < 1 || remote > 65535 || local < 0 || local > 65535 {
		return 0, 0, usagef("invalid port %q: expected [LOCAL_PORT:]PORT with ports from 1 to 65535", s)
	}
	return local, remote, nil
}

// forwarder forwards connections to ports of a pod.
type forwarder struct {
	client    *client.Client
	podID     string
	listeners []net.Listener
	conns     sync.WaitGroup
}

func (f *forwarder) listen(ctx context.Context, address string, port int) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	f.listeners = append(f.listeners, l)
	f.conns.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			f.conns.Go(func() {
				defer conn.Close()
				if err := forward(ctx, f.client, f.podID, port, conn); err != nil && ctx.Err() == nil {
					warn("%v", err)
				}
			})
		}
	})
	return l, nil
}

func (f *forwarder) close() {
	for _, l := range f.listeners {
		_ = l.Close()
	}
	f.conns.Wait()
}

// forward forwards one connection until both directions are closed.
func forward(ctx context.Context, c *client.Client, podID string, port int, conn net.Conn) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	_, err := c.Session(ctx, api.SessionRequest{Kind: api.SessionPortForward, PodID: podID, Port: int32(port)},
		api.Streams{Input: conn, Output: conn})
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
