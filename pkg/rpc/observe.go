package rpc

import (
	"context"
	"path"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/subpod/subpod/pkg/trace"
)

// Request is a request that has ended.
type Request struct {
	Service, Method string // such as runtime.v1.RuntimeService, RunPodSandbox
	Code            string // of gRPC, such as OK
	Took            time.Duration
	Waiting         bool // Options.Waiting names it: Took says nothing
}

// call is a request while it is served.
type call struct {
	i       *interceptor
	ctx     context.Context
	method  string // full
	start   time.Time
	step    *trace.Step
	waiting bool
}

// begin starts the clock and the trace of a request.
func (i *interceptor) begin(ctx context.Context, fullMethod string) *call {
	name := path.Base(fullMethod)
	c := &call{i: i, ctx: ctx, method: fullMethod, start: time.Now(), waiting: slices.Contains(i.Waiting, name)}
	if i.Traces != nil && !c.waiting {
		c.ctx, c.step = i.Traces.Begin(ctx, name, remoteOf(ctx))
	}
	return c
}

func (c *call) end(err error) {
	s := status.Convert(err)
	code := s.Code().String()
	c.i.Traces.End(c.step, code, s.Message())
	if c.i.Observe != nil {
		service, method, _ := strings.Cut(strings.TrimPrefix(c.method, "/"), "/")
		c.i.Observe(Request{Service: service, Method: method, Code: code, Took: time.Since(c.start), Waiting: c.waiting})
	}
}

// remoteOf returns the client's span, of W3C Trace Context: a kubelet with tracing has one.
func remoteOf(ctx context.Context) trace.Remote {
	if header := metadata.ValueFromIncomingContext(ctx, "traceparent"); len(header) == 1 {
		return trace.ParseRemote(header[0])
	}
	return trace.Remote{}
}

// describe gives the trace the IDs that a CRI request names.
func describe(ctx context.Context, req any) {
	if r, ok := req.(interface{ GetPodSandboxId() string }); ok {
		trace.Set(ctx, "pod", r.GetPodSandboxId())
	}
	if r, ok := req.(interface{ GetContainerId() string }); ok {
		trace.Set(ctx, "container", r.GetContainerId())
	}
}

// traced is a stream whose context has a trace.
type traced struct {
	grpc.ServerStream
	ctx context.Context
}

// Context implements grpc.ServerStream.
func (t traced) Context() context.Context { return t.ctx }
