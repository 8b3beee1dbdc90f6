// Package cri serves the Kubernetes Container Runtime Interface, v1, over gRPC.
//
// It is the edge: a handler checks its request, calls the core and words the
// answer; one interceptor waits for readiness, turns the core's errors into
// gRPC codes and writes the log line. The package holds no state.
package cri

import (
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/pkg/cgroup"
	"github.com/subpod/subpod/pkg/control"
	"github.com/subpod/subpod/pkg/events"
	"github.com/subpod/subpod/pkg/pod"
	"github.com/subpod/subpod/pkg/stream"
	"github.com/subpod/subpod/storage"
)

// maxMessage is the size of the largest message, in bytes, as the kubelet has
// it (k8s.io/cri-client).
const maxMessage = 16 << 20

// Service is what the two CRI services are served from. All fields are needed.
type Service struct {
	runtimeapi.UnsafeRuntimeServiceServer
	runtimeapi.UnsafeImageServiceServer

	RuntimeVersion string // of subpod, semantic
	Runtime        *pod.Runtime
	Images         *storage.Store
	Network        netns.Network
	Stream         *stream.Server
	Events         *events.Bus
	Cgroup         cgroup.Delegation
	// MissingIDs says why the node cannot have all IDs of images; "" when it can.
	MissingIDs string
	// Info is what Status tells with verbose set.
	Info func() map[string]any
	Log  *slog.Logger
	// Panicked is called when a request has panicked. Locks that it held may be
	// held for ever: this process must soon end.
	Panicked func()
}

// NewServer returns a gRPC server with both services. Requests wait until
// ready is closed.
func NewServer(s *Service, ready <-chan struct{}) *grpc.Server {
	edge := &edge{log: s.Log, ready: ready, panicked: s.Panicked}
	server := grpc.NewServer(
		grpc.UnaryInterceptor(edge.unary),
		grpc.StreamInterceptor(edge.stream),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxSendMsgSize(maxMessage),
		grpc.InitialWindowSize(control.Window), grpc.InitialConnWindowSize(control.Window),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	)
	runtimeapi.RegisterRuntimeServiceServer(server, s)
	runtimeapi.RegisterImageServiceServer(server, s)
	control.Register(server, s)
	return server
}
