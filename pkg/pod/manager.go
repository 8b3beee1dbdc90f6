// Package pod is the core of the runtime: what running, stopping and removing pod
// sandboxes and containers means. It holds the policy: records, names, locks, the
// order of things, recovery. What one pod sandbox or container consists of is made
// by pkg/pod/sandbox and pkg/pod/container; the mechanisms below them (namespaces,
// storage, network, OCI runtime) know nothing of pods.
//
// Every operation writes its record before the first side effect. Roll-back, stop,
// remove and crash recovery all end in the same idempotent teardown, which removes
// whatever the record says exists.
//
// # Order and locks
//
// A pod sandbox has one lock: shared by requests that work inside it (create, start,
// update), exclusive for those that build, stop or remove it. A container has one
// lock, taken after its pod sandbox's. No lock is held while a client, a registry or
// another pod is waited for: what may take long holds a reference instead (see
// references), and StopPod and RemoveContainer interrupt the holders of the lock that
// they wait for. Names have a lock of their own, taken last and held across nothing but
// the deletion of a record: a name and the record that it stands for change together
// (see names). Events are published under the lock of their object, or, an exit, by the
// only one who records it, so that subscribers see them in order.
package pod

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/subpod/subpod/pkg/events"
	"github.com/subpod/subpod/pkg/health"
	"github.com/subpod/subpod/pkg/logging"
	"github.com/subpod/subpod/pkg/oci"
	"github.com/subpod/subpod/pkg/pod/container"
	"github.com/subpod/subpod/pkg/pod/sandbox"
	"github.com/subpod/subpod/pkg/state"
)

// cleanupTimeout bounds roll-back and teardown, which run detached from the
// request that caused them.
const cleanupTimeout = 60 * time.Second

// sandboxes builds and removes what pod sandboxes consist of: *sandbox.Builder, and
// the fake of the lifecycle tests.
type sandboxes interface {
	Build(ctx context.Context, plan sandbox.Plan, p *state.Pod) error
	Teardown(ctx context.Context, p state.Pod) error
	Lost(p state.Pod) string
	Renamed(ctx context.Context, plan sandbox.Plan, p state.Pod)
	Limit(p state.Pod) (leftOut []string, err error)
	Reconcile(ctx context.Context, live []state.Pod) error
}

// containers builds and removes containers: *container.Builder, and the fake.
type containers interface {
	Prepare(ctx context.Context, plan container.Plan, p state.Pod, c *state.Container) (*container.Prepared, error)
	Create(ctx context.Context, prepared *container.Prepared, p state.Pod, c *state.Container) error
	Clean(ctx context.Context, c state.Container) error
	Delete(ctx context.Context, c state.Container) error
}

// processes starts and signals the processes of containers and waits for their end:
// *oci.Executor, and the fake.
type processes interface {
	Start(ctx context.Context, id string, c oci.Container) error
	FinishStart(ctx context.Context, id string, c oci.Container) (executed bool, err error)
	Signal(ctx context.Context, id string, c oci.Container, sig syscall.Signal, all bool) error
	Wait(ctx context.Context, id string, c oci.Container) (oci.Exit, error)
	Update(ctx context.Context, id string, c oci.Container, r *specs.LinuxResources) error
}

// sweeper removes what no record knows of: *Orphans, and the fake.
type sweeper interface {
	Sweep(ctx context.Context) error
}

// records are the stored records: *state.Store, and the fake.
type records interface {
	Pod(id string) (state.Pod, error)
	FindPod(ref string) (state.Pod, error)
	Pods() []state.Pod
	PutPod(p state.Pod) error
	UpdatePod(id string, change func(*state.Pod) error) (state.Pod, error)
	DeletePod(id string) error
	Container(id string) (state.Container, error)
	FindContainer(ref string) (state.Container, error)
	Containers() []state.Container
	ContainersOf(podID string) []state.Container
	PutContainer(c state.Container) error
	UpdateContainer(id string, change func(*state.Container) error) (state.Container, error)
	DeleteContainer(id string) error
}

// Options are what a Manager depends on. All are needed but LogDir, Plugins, Health,
// ReopenLog, Forget and Changed.
type Options struct {
	// NodeID is the identity of the node (rootless.Node.Identity); another one in a
	// record says that the node has been rebooted since.
	NodeID string
	// LogDir holds a directory of logs for each pod that subpod's own commands
	// have made.
	LogDir     string
	Handlers   Handlers
	Host       sandbox.Host
	State      records
	Sandboxes  sandboxes
	Containers containers
	Processes  processes
	Orphans    sweeper
	Events     *events.Bus
	// Plugins are told what happens, and may refuse it; nil for none.
	Plugins plugins
	// Health checks containers that ask for it, and ReopenLog makes one go on in a new log
	// file; nil for neither.
	Health    *health.Monitor
	ReopenLog func(ctx context.Context, id string) error
	// Forget drops the statistics of objects that were removed.
	Forget func(ids ...string)
	// Changed is called with the ID of a pod after a container of it has exited, or its
	// user has stopped or removed it or a part of it. It does not block.
	Changed func(podID string)
	// Restart ends a container that is unhealthy, and starts it again.
	Restart func(ctx context.Context, podID, id string, grace time.Duration) error
	Log     *slog.Logger
}

// Manager runs pod sandboxes and containers: its methods are the requests. They may be
// called concurrently.
type Manager struct {
	*base

	running   *background // what goes on after requests: watching containers, removing pods
	cancel    context.CancelFunc
	recovered chan struct{} // closed once Recover has ended
}

// base has the records, names and locks, and the steps that requests are made of.
type base struct {
	Options

	podLocks       *locks
	containerLocks *locks
	podNames       *names[state.Pod]
	containerNames *names[state.Container]
	references     *references
	ownIDs         *ownIDs
	restarting     *holds
	exits          *exitWatcher
	events         publisher
	notices        notices
	once           *logging.Once
	ctx            context.Context // ends when the server stops
}

// New makes a Manager; Recover must be called before it serves.
func New(o Options) *Manager {
	ctx, cancel := context.WithCancel(context.Background())
	if o.Forget == nil {
		o.Forget = func(...string) {}
	}
	if o.Changed == nil {
		o.Changed = func(string) {}
	}
	if o.Plugins == nil {
		o.Plugins = noPlugins{}
	}
	b := &base{
		Options:        o,
		podLocks:       newLocks(),
		once:           new(logging.Once),
		containerLocks: newLocks(),
		podNames:       newNames(o.State.Pod, o.State.DeletePod),
		containerNames: newNames(o.State.Container, o.State.DeleteContainer),
		references:     newReferences(),
		ownIDs:         &ownIDs{pods: o.State.Pods, chosen: map[string]idRange{}},
		restarting:     &holds{m: map[string]int{}},
		events:         publisher{bus: o.Events, state: o.State},
		notices:        notices{plugins: o.Plugins, state: o.State, log: o.Log},
		ctx:            ctx,
	}
	b.exits = &exitWatcher{state: o.State, processes: o.Processes, events: b.events, notices: b.notices, log: o.Log, watches: map[string]*watch{}}
	return &Manager{base: b, running: &background{}, cancel: cancel, recovered: make(chan struct{})}
}

// Close stops watching containers. They go on running.
func (m *Manager) Close() {
	m.cancel()
	m.running.close()
}

// background runs goroutines that outlive the requests that start them.
type background struct {
	mu     sync.Mutex
	closed bool
	group  sync.WaitGroup
}

// Go calls f in a goroutine of its own; not at all after close: a request may end later
// than the Manager does.
func (b *background) Go(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.closed {
		b.group.Go(f)
	}
}

// close returns once all have ended. Idempotent.
func (b *background) close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.group.Wait()
}

// detached returns a context for work that must be finished although the request
// has ended.
func detached(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
}

func newID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

func wrongState(format string, args ...any) error {
	return fmt.Errorf("%w: %w", errdefs.ErrFailedPrecondition, fmt.Errorf(format, args...))
}

// ignoreNotFound turns the error of an object that is gone into success: stopping and
// removing are idempotent.
func ignoreNotFound(err error) error {
	if errors.Is(err, state.ErrNotFound) {
		return nil
	}
	return err
}
