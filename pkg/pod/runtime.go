// Package pod is the core of the runtime: what running, stopping and removing
// pod sandboxes and containers means. It holds the policy; the mechanisms
// (namespaces, storage, network, OCI runtime) know nothing of it.
//
// Every operation writes its record before the first side effect. Roll-back,
// stop, remove and crash recovery all end in the same idempotent teardown,
// which removes whatever the record says exists.
package pod

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/pkg/cgroup"
	"github.com/subpod/subpod/pkg/events"
	"github.com/subpod/subpod/pkg/idmap"
	"github.com/subpod/subpod/pkg/oci"
	"github.com/subpod/subpod/pkg/ocispec"
	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/stats"
	"github.com/subpod/subpod/storage"
)

// The errors of this package, besides those of state, storage, oci, ocispec
// and netns that pass through it.
var (
	// ErrInvalid says that the request itself is wrong.
	ErrInvalid = errors.New("invalid request")
	// ErrExists says that the name is taken by an object with another configuration.
	ErrExists = errors.New("name is taken")
	// ErrWrongState says that the object is not in a state for this request.
	ErrWrongState = errors.New("wrong state")
)

// cleanupTimeout bounds roll-back and teardown, which run detached from the
// request that caused them.
const cleanupTimeout = 60 * time.Second

// Options are the parts that a Runtime works with. All are needed.
type Options struct {
	// RunDir holds what ends with the node: pins, bundles, pod files.
	RunDir string
	// LogDir holds a directory of logs for each pod that subpod's own commands
	// have made.
	LogDir string
	// Node is the identity of the node (rootless.Node.Identity); another one in
	// a record says that the node has been rebooted since.
	Node     string
	State    *state.Store
	Images   *storage.Store
	Executor *oci.Executor
	Network  netns.Network
	// HostNetwork: there is no pod network, all pods are on the node's.
	HostNetwork bool
	// IngressRate and EgressRate limit pods without annotations of their own, in bits
	// per second; 0 is no limit.
	IngressRate, EgressRate uint64
	// NodeNetNS is the path of the node network namespace, for hostNetwork pods.
	NodeNetNS string
	Host      ocispec.Host
	// UIDs and GIDs are the mappings of the node's user namespace.
	UIDs, GIDs     []idmap.Map
	Cgroup         cgroup.Delegation
	DefaultHandler string
	SeccompProfile string
	CDISpecDirs    []string
	DNS            DNS
	Events         *events.Bus
	Stats          *stats.Collector
	Log            *slog.Logger
}

// Runtime runs pod sandboxes and containers. Its methods may be called
// concurrently.
type Runtime struct {
	Options
	pods       *locks // one lock a pod sandbox, see locks
	containers *locks // one lock a container: create, start, remove, exit
	podNames   *names
	ctrNames   *names

	mu      sync.Mutex
	watches map[string]*watch // by container ID
	wg      sync.WaitGroup
	ctx     context.Context // ends when the server stops; watches end with it
	cancel  context.CancelFunc

	recovered chan struct{} // closed once Recover has ended
}

// New makes a Runtime; Recover must be called before it serves.
func New(o Options) *Runtime {
	ctx, cancel := context.WithCancel(context.Background())
	return &Runtime{
		Options:    o,
		pods:       newLocks(),
		containers: newLocks(),
		podNames:   newNames(),
		ctrNames:   newNames(),
		watches:    map[string]*watch{},
		ctx:        ctx,
		cancel:     cancel,
		recovered:  make(chan struct{}),
	}
}

// Close ends the watches. Containers go on running.
func (r *Runtime) Close() {
	r.cancel()
	r.wg.Wait()
}

// Handler returns the name of the runtime handler that a request means: the
// default one for "". ErrInvalid for an unknown one.
func (r *Runtime) Handler(name string) (string, error) {
	if name == "" {
		return r.DefaultHandler, nil
	}
	if _, ok := r.Executor.Handlers()[name]; !ok {
		return "", fmt.Errorf("%w: runtime handler %q is not configured", ErrInvalid, name)
	}
	return name, nil
}

func (r *Runtime) podDir(id string) string       { return filepath.Join(r.RunDir, "pods", id) }
func (r *Runtime) containerDir(id string) string { return filepath.Join(r.RunDir, "containers", id) }

// detached returns a context for work that must be finished although the
// request has ended.
func (r *Runtime) detached(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
}

// podCgroup says where the pod's containers go. cgroup.ErrBadParent.
func (r *Runtime) podCgroup(p state.Pod) (cgroup.Pod, error) {
	return r.Cgroup.PodPath(p.Config.V.GetLinux().GetCgroupParent(), p.ID)
}

func newID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}
