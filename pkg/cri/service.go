// Package cri serves the Kubernetes Container Runtime Interface, v1, over gRPC.
//
// A handler checks its request, calls the core and converts the result; package rpc
// turns the core's errors into gRPC codes. The package holds no state.
package cri

import (
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/pkg/cgroup"
	"github.com/subpod/subpod/pkg/events"
	"github.com/subpod/subpod/pkg/health"
	"github.com/subpod/subpod/pkg/idmap"
	"github.com/subpod/subpod/pkg/ocispec"
	"github.com/subpod/subpod/pkg/pod"
	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/stats"
	"github.com/subpod/subpod/pkg/stream"
	"github.com/subpod/subpod/storage"
)

// Dependencies are what the services are served from. All are needed.
type Dependencies struct {
	Version    string // of subpod, semantic
	Manager    *pod.Manager
	Sessions   *pod.Sessions
	Health     *health.Monitor // nil: no checks
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
		containerService: &containerService{manager: d.Manager, sessions: d.Sessions, state: d.State, health: d.Health, cgroups: d.Delegation},
		streamService:    &streamService{sessions: d.Sessions, stream: d.Stream},
		statsService:     &statsService{state: d.State, collector: d.Stats, delegation: d.Delegation},
	}
}

// Register adds RuntimeService and ImageService to a gRPC server.
func Register(s grpc.ServiceRegistrar, d Dependencies) {
	runtimeapi.RegisterRuntimeServiceServer(s, newRuntimeService(d))
	runtimeapi.RegisterImageServiceServer(s, &imageService{images: d.Images, rootfs: d.Rootfs})
}
