// Package rpc makes the gRPC server that all services are registered on. Its interceptor
// holds requests back until the server is ready, turns errors into gRPC codes, ends the
// server after a panic and logs every call. It knows no service.
package rpc

import (
	"context"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/trace"
)

// MaxMessage is the size of the largest message, in bytes, as in the kubelet
// (k8s.io/cri-client).
const MaxMessage = 16 << 20

// Options are needed by NewServer, all of them but Audit, Typed,
// Reasons, Traces, Observe and Waiting.
type Options struct {
	// Ready holds requests back until it is closed.
	Ready <-chan struct{}
	// Panicked is called when a request has panicked, before its client gets the error.
	// Locks that the request held may never be unlocked: this process must soon end.
	Panicked func()
	// Audit is called with every unary request before it is served.
	Audit func(ctx context.Context, request any)
	// Typed and Reasons say more about errors than their class does; the first match
	// of each counts.
	Typed   []Typed
	Reasons []Reason
	// Traces keeps where the time of requests goes; nil keeps nothing.
	Traces *trace.Recorder
	// Observe, unless it is nil, is called with each request that has ended.
	Observe func(Request)
	// Waiting are the methods which wait for something to happen, or for their client:
	// their time says nothing, and they have no trace.
	Waiting []string
	// ForkLimit names the limit of processes that is reached, "" where none is.
	ForkLimit func() string
	Log       *slog.Logger
}

// NewServer returns a gRPC server without services.
func NewServer(o Options) *grpc.Server {
	i := &interceptor{Options: o}
	return grpc.NewServer(
		grpc.UnaryInterceptor(i.unary),
		grpc.StreamInterceptor(i.stream),
		grpc.MaxRecvMsgSize(MaxMessage),
		grpc.MaxSendMsgSize(MaxMessage),
		grpc.InitialWindowSize(api.Window), grpc.InitialConnWindowSize(api.Window),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	)
}
