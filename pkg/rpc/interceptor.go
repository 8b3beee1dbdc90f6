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
)

// interceptor serves every call of the server.
type interceptor struct{ Options }

func (i *interceptor) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (resp any, err error) {
	err = i.serve(ctx, info.FullMethod, func() error {
		if i.Audit != nil {
			i.Audit(ctx, req)
		}
		resp, err = handle(ctx, req)
		return err
	})
	return resp, err
}

func (i *interceptor) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	return i.serve(ss.Context(), info.FullMethod, func() error { return handle(srv, ss) })
}

func (i *interceptor) serve(ctx context.Context, method string, handle func() error) (err error) {
	method = path.Base(method)
	if err := i.wait(ctx); err != nil {
		return err
	}
	begin := time.Now()
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
	err = handle()
	if reason := i.reasonOf(err); reason != "" {
		_ = grpc.SetTrailer(ctx, metadata.Pairs(api.ReasonTrailer, reason))
	}
	err = i.withCode(err)
	level := slog.LevelDebug
	if code := status.Code(err); code != codes.OK && code != codes.NotFound && code != codes.Canceled {
		level = slog.LevelWarn
	}
	// The request itself is never logged: it may hold secrets.
	i.Log.Log(ctx, level, "served", "method", method, "took", time.Since(begin).Round(10*time.Microsecond), "error", err)
	return err
}

// wait returns once the server is ready; Unavailable when ctx ends first.
func (i *interceptor) wait(ctx context.Context) error {
	select {
	case <-i.Ready:
		return nil
	default:
	}
	select {
	case <-i.Ready:
		return nil
	case <-ctx.Done():
		return status.Error(codes.Unavailable, "subpod is starting and still reads its state back; try again")
	}
}
