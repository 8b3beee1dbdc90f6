package cri

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path"
	"runtime/debug"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/cgroup"
	"github.com/subpod/subpod/pkg/oci"
	"github.com/subpod/subpod/pkg/ocispec"
	"github.com/subpod/subpod/pkg/pod"
	"github.com/subpod/subpod/pkg/pod/container"
	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/stream"
	"github.com/subpod/subpod/rootless"
	"github.com/subpod/subpod/storage"
)

// edge is the one interceptor.
type edge struct {
	log      *slog.Logger
	ready    <-chan struct{}
	panicked func() // called after a request has panicked, before it is answered
}

func (e *edge) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (resp any, err error) {
	err = e.serve(ctx, info.FullMethod, func() error {
		resp, err = handle(ctx, req)
		return err
	})
	return resp, err
}

func (e *edge) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	return e.serve(ss.Context(), info.FullMethod, func() error { return handle(srv, ss) })
}

func (e *edge) serve(ctx context.Context, method string, handle func() error) (err error) {
	method = path.Base(method)
	if err := e.wait(ctx); err != nil {
		return err
	}
	begin := time.Now()
	defer func() {
		if p := recover(); p != nil {
			e.log.Error("a request panicked", "method", method, "panic", p, "stack", string(debug.Stack()))
			code, cause := codes.Internal, "internal error, see the log"
			// containers/storage panics when there is no descriptor left for a lock.
			if p, ok := p.(error); ok && status.Code(withCode(p)) == codes.ResourceExhausted {
				code, cause = codes.ResourceExhausted, p.Error()
			}
			err = status.Errorf(code, "%s: %s; the server is started anew", method, cause)
			e.panicked()
		}
	}()
	err = handle()
	if reason := reasonOf(err); reason != "" {
		_ = grpc.SetTrailer(ctx, metadata.Pairs(api.ReasonTrailer, reason))
	}
	err = withCode(err)
	level := slog.LevelDebug
	if code := status.Code(err); code != codes.OK && code != codes.NotFound && code != codes.Canceled {
		level = slog.LevelWarn
	}
	// The request itself is never logged: it may hold secrets.
	e.log.Log(ctx, level, "served", "method", method, "took", time.Since(begin).Round(10*time.Microsecond), "error", err)
	return err
}

// wait holds a request back until recovery has ended.
func (e *edge) wait(ctx context.Context) error {
	select {
	case <-e.ready:
		return nil
	default:
	}
	select {
	case <-e.ready:
		return nil
	case <-ctx.Done():
		return status.Error(codes.Unavailable, "subpod is starting and still reads its state back; try again")
	}
}

// codeOf lists which sentinel means which gRPC code; the first match counts.
var codeOf = []struct {
	err  error
	code codes.Code
}{
	{errdefs.ErrAborted, codes.Aborted},
	{context.Canceled, codes.Canceled},
	{context.DeadlineExceeded, codes.DeadlineExceeded},
	{oci.ErrTimeout, codes.DeadlineExceeded},
	{oci.ErrRuntimeHangs, codes.DeadlineExceeded},
	{state.ErrNotFound, codes.NotFound},
	{state.ErrAmbiguous, codes.InvalidArgument},
	{storage.ErrImageNotFound, codes.NotFound},
	{storage.ErrNotLoggedIn, codes.NotFound},
	{storage.ErrBadReference, codes.InvalidArgument},
	{storage.ErrUnauthorized, codes.PermissionDenied},
	{storage.ErrImageInUse, codes.FailedPrecondition},
	{storage.ErrNoSpace, codes.ResourceExhausted},
	{storage.ErrCorrupt, codes.DataLoss},
	{errdefs.ErrAlreadyExists, codes.AlreadyExists},
	{errdefs.ErrInvalidArgument, codes.InvalidArgument},
	{container.ErrMountSource, codes.FailedPrecondition},
	{ocispec.ErrInvalid, codes.InvalidArgument},
	{stream.ErrInvalid, codes.InvalidArgument},
	{stream.ErrBusy, codes.ResourceExhausted},
	{stream.ErrClosed, codes.Unavailable},
	{cgroup.ErrBadParent, codes.InvalidArgument},
	{netns.ErrBadPod, codes.InvalidArgument},
	{netns.ErrPortTaken, codes.AlreadyExists},
	{netns.ErrNoAddress, codes.ResourceExhausted},
	{netns.ErrNotReady, codes.Unavailable},
	{storage.ErrReadOnlyImage, codes.FailedPrecondition},
	{storage.ErrUnsupported, codes.FailedPrecondition},
	{storage.ErrIDRange, codes.FailedPrecondition},
	{netns.ErrSysctl, codes.InvalidArgument},
	{oci.ErrCommandNotFound, codes.InvalidArgument},
	{oci.ErrCommandNotExecutable, codes.InvalidArgument},
	{errdefs.ErrFailedPrecondition, codes.FailedPrecondition},
	{oci.ErrNotRunning, codes.FailedPrecondition},
	{rootless.ErrPortPrivileged, codes.PermissionDenied},
	{unix.ENOSPC, codes.ResourceExhausted},
	{unix.EDQUOT, codes.ResourceExhausted},
	{unix.EMFILE, codes.ResourceExhausted},
	{unix.ENFILE, codes.ResourceExhausted},
	{unix.EAGAIN, codes.ResourceExhausted}, // fork(2)
	{unix.ENOMEM, codes.ResourceExhausted},
}

// remedies lists what to do about limits whose errors do not name them.
var remedies = []struct {
	err  error
	text string
}{
	{unix.EMFILE, "raise the daemon's limit of open files: LimitNOFILE= of its unit, ulimit -n"},
	{unix.EAGAIN, "raise the limit of processes: TasksMax= of the daemon's unit or the user's slice, ulimit -u"},
}

// typed lists the errors that the kubelet knows by the text that the message
// begins with (k8s.io/cri-api/pkg/errors). Their code must be Unknown: only
// then does its client (k8s.io/cri-client) take the bare message.
var typed = []struct{ err, kubelet error }{
	{storage.ErrRegistryUnavailable, crierrors.ErrRegistryUnavailable},
	{storage.ErrSignature, crierrors.ErrSignatureValidationFailed},
	{container.ErrImageVolume, crierrors.ErrImageVolumeMountFailed},
	{ocispec.ErrRecursiveReadOnly, crierrors.ErrRROUnsupported},
}

// reasons lists what our own client tells apart where one gRPC code has several
// meanings.
var reasons = []struct {
	err    error
	reason string
}{
	{oci.ErrCommandNotFound, api.ReasonCommandNotFound},
	{oci.ErrCommandNotExecutable, api.ReasonCommandNotExecutable},
	{storage.ErrImageNotFound, api.ReasonImageNotFound},
	{storage.ErrNotLoggedIn, api.ReasonNotLoggedIn},
	{pod.ErrNameTaken, api.ReasonNameTaken},
}

func reasonOf(err error) string {
	for _, r := range reasons {
		if errors.Is(err, r.err) {
			return r.reason
		}
	}
	return ""
}

// withCode gives an error of the core its gRPC code.
func withCode(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	for _, t := range typed {
		if errors.Is(err, t.err) {
			return status.Error(codes.Unknown, fmt.Sprintf("%s: %v", t.kubelet, err))
		}
	}
	text := err.Error()
	for _, r := range remedies {
		if errors.Is(err, r.err) {
			text += "; " + r.text
		}
	}
	for _, m := range codeOf {
		if errors.Is(err, m.err) {
			return status.Error(m.code, text)
		}
	}
	return status.Error(codes.Unknown, err.Error())
}
