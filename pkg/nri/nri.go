// Package nri lets plugins of the Node Resource Interface (github.com/containerd/nri) see what
// happens to pod sandboxes and containers, refuse it, and adjust containers. Plugins connect to
// a socket that only the user can reach: they are the user's own programs, and are trusted as
// the user's requests are. What they want for a container goes through the same checks.
//
// Nothing waits for a plugin longer than requestTimeout, after which it is disconnected, and
// for all of them longer than turnTimeout.
package nri

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/log"
	"github.com/containerd/ttrpc"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/errclass"
	"github.com/subpod/subpod/pkg/pod"
	"github.com/subpod/subpod/pkg/state"
)

const (
	// registrationTimeout is how long a plugin that has connected may take to register.
	registrationTimeout = 5 * time.Second
	// requestTimeout is how long a plugin may take to answer, also to take in what there is
	// when it registers.
	requestTimeout = 4 * time.Second
	// turnTimeout bounds what a request waits for all plugins, other requests' turns
	// included.
	turnTimeout = 10 * time.Second
	// changeTimeout bounds what plugins ask for besides: limits of other containers.
	changeTimeout = 10 * time.Second
)

// ErrBusy says that plugins have not answered the requests that came before in time.
var ErrBusy = errclass.New(errdefs.ErrUnavailable, "NRI plugins do not answer")

// Options are what Plugins depends on. All are needed.
type Options struct {
	Socket  string // made with its directory; of mode 0600
	Version string // of subpod
	// List returns the records that a plugin learns when it registers.
	List func() ([]state.Pod, []state.Container)
	// Spec returns the OCI specification of a container; nil when there is none.
	Spec func(state.Container) *specs.Spec
	// Limit changes the limits of a container, Kill ends it.
	Limit func(ctx context.Context, id string, change *runtimeapi.LinuxContainerResources) error
	Kill  func(ctx context.Context, id string) error
	Log   *slog.Logger
}

// Plugins are the registered plugins. Methods may be called concurrently.
type Plugins struct {
	options Options
	runtime *adaptation.Adaptation
	count   atomic.Int32
	turn    chan struct{} // taken by who talks to plugins
	started atomic.Bool   // the first synchronization, Start's own, is over

	mu       sync.Mutex
	creating map[string]creation // containers that plugins were asked about, by ID
	built    map[string]bool     // pod sandboxes that they were asked about, until they are removed
}

// creation is a container that no record shows yet.
type creation struct {
	container state.Container
	spec      *specs.Spec
}

// New prepares for plugins; Start lets them connect.
func New(o Options) (*Plugins, error) {
	n := &Plugins{options: o, turn: make(chan struct{}, 1), creating: map[string]creation{}, built: map[string]bool{}}
	setLog()
	libraryLog.Store(nil) // it would say that there is no WebAssembly
	adaptation.SetPluginRegistrationTimeout(registrationTimeout)
	adaptation.SetPluginRequestTimeout(requestTimeout)
	var err error
	n.runtime, err = adaptation.New("subpod", o.Version, n.synchronize, n.updateContainers,
		adaptation.WithSocketPath(o.Socket), adaptation.WithPluginPath(""), adaptation.WithMetrics(counter{&n.count}),
		adaptation.WithTTRPCOptions([]ttrpc.ClientOpts{ttrpc.WithUnaryClientInterceptor(patience)}, nil))
	libraryLog.Store(o.Log)
	return n, err
}

// Start listens for plugins. Records must be complete.
func (n *Plugins) Start() error {
	if err := os.MkdirAll(filepath.Dir(n.options.Socket), 0o700); err != nil {
		return fmt.Errorf("make the directory of the socket for NRI plugins: %w", err)
	}
	if err := n.runtime.Start(); err != nil {
		return err
	}
	return os.Chmod(n.options.Socket, 0o600)
}

// Close disconnects all plugins.
func (n *Plugins) Close() { n.runtime.Stop() }

// relay talks to plugins, when it is this request's turn. f is not called where there are
// none. No plugin is registered meanwhile: one learns of everything exactly once.
func (n *Plugins) relay(ctx context.Context, f func(ctx context.Context) error) error {
	return n.relayNew(ctx, func() {}, f)
}

// relayNew is relay for what no record shows yet: keep is called, also where there are no
// plugins, and keeps it for those that register later.
func (n *Plugins) relayNew(ctx context.Context, keep func(), f func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, turnTimeout)
	defer cancel()
	unblock, err := n.blockRegistration(ctx)
	if err != nil {
		return err
	}
	defer unblock()
	n.mu.Lock()
	keep()
	n.mu.Unlock()
	if n.count.Load() == 0 {
		return nil
	}
	select {
	case n.turn <- struct{}{}:
		defer func() { <-n.turn }()
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrBusy, ctx.Err())
	}
	return f(ctx)
}

// blockRegistration waits for a plugin that registers just now, and keeps others from it
// until unblock is called.
func (n *Plugins) blockRegistration(ctx context.Context) (unblock func(), err error) {
	blocked := make(chan *adaptation.PluginSyncBlock, 1)
	go func() { blocked <- n.runtime.BlockPluginSync() }()
	select {
	case b := <-blocked:
		return b.Unblock, nil
	case <-ctx.Done():
		go func() { (<-blocked).Unblock() }()
		return nil, fmt.Errorf("%w: %w", ErrBusy, ctx.Err())
	}
}

// Pod tells plugins of a pod sandbox, and returns what one of them has against it.
func (n *Plugins) Pod(ctx context.Context, m pod.Moment, p state.Pod) error {
	switch m {
	case pod.PodRun:
		return named(n.relayNew(ctx, func() { n.built[p.ID] = true }, func(ctx context.Context) error {
			return n.runtime.RunPodSandbox(ctx, &adaptation.RunPodSandboxRequest{Pod: podMessage(p)})
		}))
	case pod.PodRemove:
		n.mu.Lock()
		delete(n.built, p.ID)
		n.mu.Unlock()
	}
	return named(n.relay(ctx, func(ctx context.Context) error { return n.tellPod(ctx, m, p) }))
}

func (n *Plugins) tellPod(ctx context.Context, m pod.Moment, p state.Pod) error {
	switch m {
	case pod.PodUpdate:
		_, err := n.runtime.UpdatePodSandbox(ctx, &adaptation.UpdatePodSandboxRequest{
			Pod: podMessage(p), OverheadLinuxResources: fromCRI(p.Overhead.V), LinuxResources: fromCRI(p.Resources.V),
		})
		return err
	case pod.PodUpdated:
		return n.runtime.PostUpdatePodSandbox(ctx, &adaptation.PostUpdatePodSandboxRequest{Pod: podMessage(p)})
	case pod.PodStop:
		return n.runtime.StopPodSandbox(ctx, &adaptation.StopPodSandboxRequest{Pod: podMessage(p)})
	case pod.PodRemove:
		return n.runtime.RemovePodSandbox(ctx, &adaptation.RemovePodSandboxRequest{Pod: podMessage(p)})
	}
	return nil
}

// Container tells plugins of a container, and returns what one of them has against it.
func (n *Plugins) Container(ctx context.Context, m pod.Moment, p state.Pod, c state.Container) error {
	if m == pod.ContainerCreated || m == pod.ContainerUndone {
		if asked := n.created(c.ID); !asked && m == pod.ContainerUndone {
			return nil // plugins do not know it
		}
	}
	var updates []*adaptation.ContainerUpdate
	err := n.relay(ctx, func(ctx context.Context) (err error) {
		updates, err = n.tell(ctx, m, podMessage(p), n.message(c))
		return err
	})
	n.limit(ctx, updates)
	return named(err)
}

func (n *Plugins) tell(ctx context.Context, m pod.Moment, p *adaptation.PodSandbox, c *adaptation.Container) ([]*adaptation.ContainerUpdate, error) {
	switch m {
	case pod.ContainerCreated:
		return nil, n.runtime.PostCreateContainer(ctx, &adaptation.PostCreateContainerRequest{Pod: p, Container: c})
	case pod.ContainerStart:
		return nil, n.runtime.StartContainer(ctx, &adaptation.StartContainerRequest{Pod: p, Container: c})
	case pod.ContainerStarted:
		return nil, n.runtime.PostStartContainer(ctx, &adaptation.PostStartContainerRequest{Pod: p, Container: c})
	case pod.ContainerUpdated:
		return nil, n.runtime.PostUpdateContainer(ctx, &adaptation.PostUpdateContainerRequest{Pod: p, Container: c})
	case pod.ContainerStop:
		return n.stop(ctx, p, c)
	case pod.ContainerUndone:
		updates, err := n.stop(ctx, p, c)
		return updates, errors.Join(err, n.runtime.RemoveContainer(ctx, &adaptation.RemoveContainerRequest{Pod: p, Container: c}))
	case pod.ContainerRemove:
		return nil, n.runtime.RemoveContainer(ctx, &adaptation.RemoveContainerRequest{Pod: p, Container: c})
	}
	return nil, nil
}

func (n *Plugins) stop(ctx context.Context, p *adaptation.PodSandbox, c *adaptation.Container) ([]*adaptation.ContainerUpdate, error) {
	resp, err := n.runtime.StopContainer(ctx, &adaptation.StopContainerRequest{Pod: p, Container: c})
	return resp.GetUpdate(), err
}

// created ends the creation of a container, and reports whether plugins were asked about it.
func (n *Plugins) created(id string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, ok := n.creating[id]
	delete(n.creating, id)
	return ok
}

// named says whose error it is.
func named(err error) error {
	if err == nil || errors.Is(err, ErrBusy) {
		return err
	}
	return fmt.Errorf("NRI: %w", short{err})
}

// maxText is how much of a plugin's words is passed on, in bytes: they go to the client, into
// the log, and into the record of a container whose start is refused.
const maxText = 1024

func cut(text string) string {
	if len(text) <= maxText {
		return text
	}
	return strings.ToValidUTF8(text[:maxText], "") + "…"
}

// short is an error of which the text is cut.
type short struct{ error }

// Error implements error.
func (s short) Error() string { return cut(s.error.Error()) }

// Unwrap returns the error.
func (s short) Unwrap() error { return s.error }

// counter counts plugins: while there are none, nobody waits for a turn.
type counter struct{ n *atomic.Int32 }

// UpdatePluginCount implements adaptation.Metrics.
func (c counter) UpdatePluginCount(count int) { c.n.Store(int32(count)) }

// RecordPluginInvocation implements adaptation.Metrics.
func (counter) RecordPluginInvocation(string, string, error) {}

// RecordPluginLatency implements adaptation.Metrics.
func (counter) RecordPluginLatency(string, string, time.Duration) {}

// RecordPluginAdjustments implements adaptation.Metrics.
func (counter) RecordPluginAdjustments(string, string, *adaptation.ContainerAdjustment, int, int) {}

// libraryLog is where the library's messages go, nil for nowhere: the library has one log for
// the process, which its goroutines read at any time.
var libraryLog atomic.Pointer[slog.Logger]

var setLog = sync.OnceFunc(func() { log.Set(logger{}) })

// logger passes the library's messages on.
type logger struct{}

// Debugf implements log.Logger.
func (l logger) Debugf(ctx context.Context, format string, args ...any) {
	l.write(ctx, slog.LevelDebug, format, args)
}

// Infof implements log.Logger; what the library reports is of little interest.
func (l logger) Infof(ctx context.Context, format string, args ...any) {
	l.write(ctx, slog.LevelDebug, format, args)
}

// Warnf implements log.Logger.
func (l logger) Warnf(ctx context.Context, format string, args ...any) {
	l.write(ctx, slog.LevelWarn, format, args)
}

// Errorf implements log.Logger.
func (l logger) Errorf(ctx context.Context, format string, args ...any) {
	l.write(ctx, slog.LevelError, format, args)
}

func (l logger) write(ctx context.Context, level slog.Level, format string, args []any) {
	if to := libraryLog.Load(); to != nil && to.Enabled(ctx, level) {
		to.Log(ctx, level, "NRI: "+fmt.Sprintf(format, args...))
	}
}
