package rpc

import (
	"context"
	"log/slog"
	"path"
	"runtime/debug"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/trace"
)

// interceptor serves every call of the server.
type interceptor struct{ Options }

func (i *interceptor) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (resp any, err error) {
	err = i.serve(ctx, info.FullMethod, func(ctx context.Context) error {
		describe(ctx, req)
		if i.Audit != nil {
			i.Audit(ctx, req)
		}
		resp, err = handle(ctx, req)
		return err
	})
	return resp, err
}

func (i *interceptor) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	return i.serve(ss.Context(), info.FullMethod, func(ctx context.Context) error { return handle(srv, traced{ss, ctx}) })
}

func (i *interceptor) serve(ctx context.Context, fullMethod string, handle func(context.Context) error) (err error) {
	method := path.Base(fullMethod)
	c := i.begin(ctx, fullMethod)
	defer func() { c.end(err) }()
	if err := i.wait(c.ctx); err != nil {
		i.log(ctx, method, time.Since(c.start), err)
		return err
	}
	defer func() {
		if p := recover(); p != nil {
			i.Log.Error("a request panicked", "method", method, "panic", p, "stack", string(debug.Stack()))
			code, cause := codes.Internal, "internal error, see the log"
			// containers/storage panics when there is no descriptor left for a lock.
			if p, ok := p.(error); ok && status.Code(i.withCode(p)) == codes.ResourceExhausted {
				code, cause = codes.ResourceExhausted, p.Error()
			}
			err = status.Errorf(code, "%s: %s; the server is started anew", method, cause)
			i.Panicked()
		}
	}()
	err = handle(c.ctx)
	if reason := i.reasonOf(err); reason != "" {
		_ = grpc.SetTrailer(ctx, metadata.Pairs(api.ReasonTrailer, reason))
	}
	err = bounded(i.withCode(err))
	i.log(ctx, method, time.Since(c.start), err)
	return err
}

// log writes one line for each request. The request itself is never logged: it may hold
// secrets.
func (i *interceptor) log(ctx context.Context, method string, took time.Duration, err error) {
	took = took.Round(10 * time.Microsecond)
	if err == nil {
		i.Log.DebugContext(ctx, "request served", "method", method, "took", took)
		return
	}
	level, s := slog.LevelWarn, status.Convert(err)
	if s.Code() == codes.NotFound || s.Code() == codes.Canceled {
		level = slog.LevelDebug
	}
	fields := []any{"method", method, "took", took, "code", s.Code().String(), "error", s.Message()}
	if client := ClientOf(ctx).Program; client != "" { // a process of the node, such as a kubelet
		fields = append(fields, "client", client)
	}
	i.Log.Log(ctx, level, "request failed", fields...)
}

// wait returns once the server is ready; Unavailable when ctx ends first.
func (i *interceptor) wait(ctx context.Context) (err error) {
	select {
	case <-i.Ready:
		return nil
	default:
	}
	_, step := trace.Start(ctx, "wait for the server's start")
	defer func() { step.End(err) }()
	select {
	case <-i.Ready:
		return nil
	case <-ctx.Done():
		return status.Error(codes.Unavailable, "subpod is starting and still reads its state back; try again")
	}
}
