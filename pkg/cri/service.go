// Package cri serves the Kubernetes Container Runtime Interface, v1, over gRPC.
//
// A handler checks its request, calls the core and converts the result; package rpc
// turns the core's errors into gRPC codes. The package holds no state.
package cri

import (
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/cgroup"
	"github.com/subpod/subpod/pkg/events"
	"github.com/subpod/subpod/pkg/idmap"
	"github.com/subpod/subpod/pkg/ocispec"
	"github.com/subpod/subpod/pkg/pod"
	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/stats"
	"github.com/subpod/subpod/pkg/stream"
	"github.com/subpod/subpod/storage"
)

// maxMessage is the size of the largest message, in bytes, as the kubelet has
// it (k8s.io/cri-client).
const maxMessage = 16 << 20

// Dependencies are what the services are served from. All are needed.
type Dependencies struct {
	Version    string // of subpod, semantic
	Manager    *pod.Manager
	Sessions   *pod.Sessions
	Copier     *pod.Copier
	Checker    *pod.Checker
	State      *state.Store
	Images     *storage.Images
	Rootfs     *storage.Rootfs
	Network    netns.Network
	Stream     *stream.Server
	Events     *events.Bus
	Stats      *stats.Collector
	Delegation cgroup.Delegation
	Host       ocispec.Host
	// UIDs and GIDs are the mappings of the node's user namespace.
	UIDs, GIDs []idmap.Map
	Handlers   pod.Handlers
	// MissingIDs is the reason why the node cannot have all IDs of images; "" when
	// it can.
	MissingIDs string
	// Degraded is why the server uses another configuration than the one on disk; ""
	// when it does not. Status reports it; the runtime is ready all the same.
	Degraded string
	// Info returns the verbose part of Status.
	Info func() map[string]any
	Log  *slog.Logger
	// Panicked is called when a request has panicked. Locks that it held may be
	// held for ever: this process must soon end.
	Panicked func()
}

// runtimeService is put together from services for each kind of object.
type runtimeService struct {
	runtimeapi.UnsafeRuntimeServiceServer
	*nodeService
	*sandboxService
	*containerService
	*streamService
	*statsService
}

var _ runtimeapi.RuntimeServiceServer = (*runtimeService)(nil)

func newRuntimeService(d Dependencies) *runtimeService {
	return &runtimeService{
		nodeService: &nodeService{
			version: d.Version, network: d.Network, delegation: d.Delegation, missingIDs: d.MissingIDs, degraded: d.Degraded,
			handlers: d.Handlers, host: d.Host, uids: d.UIDs, gids: d.GIDs, rootfs: d.Rootfs, info: d.Info,
		},
		sandboxService:   &sandboxService{manager: d.Manager, state: d.State, events: d.Events},
		containerService: &containerService{manager: d.Manager, sessions: d.Sessions, state: d.State},
		streamService:    &streamService{sessions: d.Sessions, stream: d.Stream},
		statsService:     &statsService{state: d.State, collector: d.Stats, delegation: d.Delegation},
	}
}

// NewServer returns a gRPC server with both services. Requests wait until
// ready is closed.
func NewServer(d Dependencies, ready <-chan struct{}) *grpc.Server {
	edge := &edge{log: d.Log, ready: ready, panicked: d.Panicked}
	server := grpc.NewServer(
		grpc.UnaryInterceptor(edge.unary),
		grpc.StreamInterceptor(edge.stream),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxSendMsgSize(maxMessage),
		grpc.InitialWindowSize(api.Window), grpc.InitialConnWindowSize(api.Window),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	)
	runtimeapi.RegisterRuntimeServiceServer(server, newRuntimeService(d))
	runtimeapi.RegisterImageServiceServer(server, &imageService{images: d.Images, rootfs: d.Rootfs})
	api.Register(server, &controlService{manager: d.Manager, sessions: d.Sessions, copier: d.Copier, checker: d.Checker, images: d.Images})
	return server
}

// controlService serves subpod's own service.
type controlService struct {
	manager  *pod.Manager
	sessions *pod.Sessions
	copier   *pod.Copier
	checker  *pod.Checker
	images   *storage.Images
}
