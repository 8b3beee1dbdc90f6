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
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/pkg/config"
	"github.com/subpod/subpod/pkg/control"
	"github.com/subpod/subpod/pkg/cri"
	"github.com/subpod/subpod/pkg/hostport"
	"github.com/subpod/subpod/pkg/logging"
	"github.com/subpod/subpod/pkg/proc"
	"github.com/subpod/subpod/pkg/rpc"
	"github.com/subpod/subpod/pkg/stream"
	"github.com/subpod/subpod/rootless"
)

// stopGrace is how long requests under way may take to end when the server stops.
// Clients wait meanwhile, and repeat what is cut off.
const stopGrace = 200 * time.Millisecond

// panicExitDelay is how long the server lives on after a request has panicked, so that
// its client gets an answer.
const panicExitDelay = 100 * time.Millisecond

// runServer serves until ctx ends; containers keep running. It calls served once pods
// are recovered and requests are answered, before it reports that to the supervisor. degraded
// is why cfg is not the configuration on disk, "" when it is.
func runServer(ctx context.Context, cfg *config.Config, degraded string, node *rootless.Node, level *slog.LevelVar, served func()) error {
	begin := time.Now()
	activated := rootless.Held().Take(rootless.HeldCRI) // before what nobody has taken is dropped
	nodeNet, err := netns.OpenThread(node.NetNS)
	if err != nil {
		return err
	}
	defer nodeNet.Close()
	d, err := openDependencies(ctx, cfg, degraded, node, nodeNet, level)
	if err != nil {
		return err
	}
	defer d.close()

	listener, err := listenCRI(activated, cfg.Daemon.Socket)
	if err != nil {
		return err
	}
	streaming, err := d.listenStreams(cfg, node, nodeNet)
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	ready := make(chan struct{})
	server, clients := newServer(d, ready), rpc.Identify(listener)

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
	serve("serve CRI", func() error { return server.Serve(clients) })
	serve("serve streams", func() error { return d.cri.Stream.Serve(streaming...) })
	group.Go(func() error {
		<-stopped.Done()
		d.events.Close() // subscriptions have no end of their own
		d.observer.traces.Close()
		shutDown(server, clients)
		return d.cri.Stream.Close()
	})
	d.serveMetrics(stopped, cfg)
	d.manager.Recover(ctx)
	if err := d.expose(ctx, cfg, nodeNet.Do); err != nil {
		stop()
		return errors.Join(err, group.Wait())
	}
	if err := d.ports.Sweep(ctx); err != nil {
		slog.Error("host ports of pods that are gone may still be forwarded", "error", err)
	}
	d.startPlugins()
	d.units.Start() // before clients ask what becomes of their pods
	close(ready)
	slog.Info("serving", "socket", cfg.Daemon.Socket, "took", time.Since(begin).Round(time.Millisecond))
	served()
	if err := node.Ready(); err != nil {
		slog.Warn("the supervisor or the service manager does not know that the server is ready", "error", err)
	}
	releasing := time.AfterFunc(startPagesDelay, func() {
		if err := releaseStartPages(); err != nil {
			slog.Debug("the pages of the start stay", "error", err)
		}
	})
	defer releasing.Stop()
	return group.Wait()
}

// newServer returns the gRPC server with all services. Requests wait until ready is closed.
func newServer(d *dependencies, ready <-chan struct{}) *grpc.Server {
	server := rpc.NewServer(rpc.Options{
		Ready: ready,
		// The supervisor starts another server, which recovers what this one was doing,
		// as after any crash.
		Panicked:  func() { time.AfterFunc(panicExitDelay, func() { logging.Exit(1, "") }) },
		Audit:     d.control.Audit.Request,
		Typed:     cri.TypedErrors(),
		Reasons:   control.Reasons(),
		Traces:    d.observer.traces,
		Observe:   d.observer.request(),
		Waiting:   append(control.Waiting(), "GetContainerEvents"),
		ForkLimit: func() string { return proc.ForkLimit(os.Getpid()) },
		Log:       slog.Default(),
	})
	cri.Register(server, d.cri)
	control.Register(server, d.control)
	return server
}

// expose starts what network.expose asks for.
func (d *dependencies) expose(ctx context.Context, cfg *config.Config, inNode func(func() error) error) error {
	what, err := hostport.ParseExpose(cfg.Network.Expose)
	if err != nil || d.ports == nil {
		return err
	}
	e := hostport.Exposer{Expose: what, Forwarder: d.ports, InNode: inNode, Log: slog.Default()}
	e.Start(ctx)
	return nil
}

// listenStreams sets up the streaming server and returns its listeners.
func (d *dependencies) listenStreams(cfg *config.Config, node *rootless.Node, nodeNet *netns.Thread) ([]net.Listener, error) {
	address, err := netip.ParseAddr(cfg.Streaming.Address)
	if err != nil {
		return nil, fmt.Errorf("streaming.address: %w", err)
	}
	listeners, err := stream.Listen(address, uint16(cfg.Streaming.Port), streamListeners(node, nodeNet)...)
	if err != nil {
		return nil, err
	}
	d.cri.Stream, err = stream.New(d.cri.Sessions, stream.Options{
		BaseURL:     "http://" + listeners[0].Addr().String(),
		IdleTimeout: cfg.Streaming.IdleTimeout.Duration,
	})
	if err != nil {
		for _, l := range listeners {
			err = errors.Join(err, l.Close())
		}
		return nil, err
	}
	return listeners, nil
}

// shutDown lets requests end, then ends those that do not, and clients that have not begun
// to speak.
func shutDown(server *grpc.Server, clients *rpc.Listener) {
	done := make(chan struct{})
	go func() {
		server.GracefulStop()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(stopGrace):
		clients.Shut()
		server.Stop()
	}
}

// streamListeners make the streaming server reachable from the host and from
// inside the node.
func streamListeners(node *rootless.Node, nodeNet *netns.Thread) []stream.ListenFunc {
	if node.NetNS == "" {
		return []stream.ListenFunc{net.Listen} // one network for both
	}
	return []stream.ListenFunc{net.Listen, nodeNet.Listen}
}

// listenCRI returns the service manager's socket, where there is one for the path, or
// makes one.
func listenCRI(activated *os.File, path string) (net.Listener, error) {
	if activated == nil {
		return listenUnix(path)
	}
	l, err := net.FileListener(activated)
	_ = activated.Close() // the listener has another descriptor
	if err != nil {
		return nil, fmt.Errorf("take the socket of the service manager: %w", err)
	}
	if at := l.Addr().String(); at != path {
		slog.Warn("the service manager's socket is not used: daemon.socket is another one", "socket", at, "daemon.socket", path)
		return listenUnix(path)
	}
	return l, nil
}

// listenUnix makes the socket that only its owner may use. The caller has locked the
// state, so a socket that is there already is a dead server's.
func listenUnix(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make the socket's directory: %w", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove the old socket: %w", err)
	}
	// The socket gets its mode before its name. The process's umask would be that of
	// everything that is made at the same time.
	private := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		if controlErr := raw.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); controlErr != nil {
			return controlErr
		}
		return err
	}}
	l, err := private.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return l, nil
}
