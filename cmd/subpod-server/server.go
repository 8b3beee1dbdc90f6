package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/pkg/config"
	"github.com/subpod/subpod/pkg/cri"
	"github.com/subpod/subpod/pkg/stream"
	"github.com/subpod/subpod/rootless"
)

// stopGrace is how long requests under way may take to end when the server stops.
// Clients wait meanwhile, and repeat what is cut off.
const stopGrace = 200 * time.Millisecond

// lastWords is how long the server lives on after a request has panicked, so that
// its client gets an answer.
const lastWords = 100 * time.Millisecond

// runServer serves until ctx ends. Containers go on running after it.
func runServer(ctx context.Context, cfg *config.Config, node *rootless.Node) error {
	begin := time.Now()
	nodeThread, err := netns.OpenThread(node.NetNS)
	if err != nil {
		return err
	}
	defer nodeThread.Close()
	parts, err := newParts(ctx, cfg, node, nodeThread)
	if err != nil {
		return err
	}
	defer parts.close()

	listener, err := listenUnix(cfg.Daemon.Socket)
	if err != nil {
		return err
	}
	address, err := netip.ParseAddr(cfg.Streaming.Address)
	if err != nil {
		return errors.Join(fmt.Errorf("streaming.address: %w", err), listener.Close())
	}
	streaming, err := stream.Listen(address, uint16(cfg.Streaming.Port), streamListeners(node, nodeThread)...)
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	parts.service.Stream, err = stream.New(parts.runtime, stream.Options{
		BaseURL:     "http://" + streaming[0].Addr().String(),
		IdleTimeout: cfg.Streaming.IdleTimeout.Duration,
	})
	if err != nil {
		return err
	}
	// Started again by the supervisor, the next server puts in order what this one
	// was doing, as after any crash.
	parts.service.Panicked = func() { time.AfterFunc(lastWords, func() { os.Exit(1) }) }
	ready := make(chan struct{})
	server := cri.NewServer(parts.service, ready)

	var group errgroup.Group
	stopped, stop := context.WithCancel(ctx)
	defer stop()
	serve := func(what string, run func() error) {
		group.Go(func() error {
			defer stop()
			if err := run(); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			return nil
		})
	}
	serve("serve CRI", func() error { return server.Serve(listener) })
	serve("serve streams", func() error { return parts.service.Stream.Serve(streaming...) })
	group.Go(func() error {
		<-stopped.Done()
		parts.events.Close() // subscriptions have no end of their own
		shutDown(server)
		return parts.service.Stream.Close()
	})
	if err := parts.runtime.Recover(ctx); err != nil {
		stop()
		return errors.Join(err, group.Wait())
	}
	expose(ctx, cfg, parts.ports, nodeThread)
	if err := parts.ports.sweep(ctx); err != nil {
		slog.Error("host ports of pods that are gone may still be forwarded", "error", err)
	}
	close(ready)
	slog.Info("serving", "socket", cfg.Daemon.Socket, "took", time.Since(begin).Round(time.Millisecond))
	if err := node.Ready(); err != nil {
		slog.Warn("not everybody could be told that the server is ready", "error", err)
	}
	return group.Wait()
}

// shutDown lets requests end, then ends those that do not.
func shutDown(server *grpc.Server) {
	done := make(chan struct{})
	go func() {
		server.GracefulStop()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(stopGrace):
		server.Stop()
	}
}

// streamListeners make the streaming server reachable from the host and from
// inside the node.
func streamListeners(node *rootless.Node, nodeThread *netns.Thread) []stream.ListenFunc {
	if node.NetNS == "" {
		return []stream.ListenFunc{net.Listen} // one network for both
	}
	return []stream.ListenFunc{net.Listen, nodeThread.Listen}
}

// listenUnix makes the socket that only its owner may use. The caller holds the
// state, so a socket that is there already is a dead server's.
func listenUnix(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make the socket's directory: %w", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove the old socket: %w", err)
	}
	old := unix.Umask(0o177)
	l, err := net.Listen("unix", path)
	unix.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return l, nil
}
