package rpc_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/emptypb"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/cgroup"
	"github.com/subpod/subpod/pkg/control"
	"github.com/subpod/subpod/pkg/cri"
	"github.com/subpod/subpod/pkg/oci"
	"github.com/subpod/subpod/pkg/ocispec"
	"github.com/subpod/subpod/pkg/pod"
	"github.com/subpod/subpod/pkg/pod/container"
	"github.com/subpod/subpod/pkg/rpc"
	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/stream"
	"github.com/subpod/subpod/rootless"
	"github.com/subpod/subpod/storage"
)

// log is a log that is safe for concurrent use.
type log struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// served is a server with one service, whose methods Unary and Stream call handle.
type served struct {
	conn     *grpc.ClientConn
	ready    chan struct{}
	panicked chan struct{}
	log      log
	limit    string // of processes
}

func serve(t *testing.T, handle func(context.Context) error) *served {
	t.Helper()
	return serveWith(t, func(*rpc.Options) {}, handle)
}

// serveWith is serve with other options.
func serveWith(t *testing.T, change func(*rpc.Options), handle func(context.Context) error) *served {
	t.Helper()
	s := &served{ready: make(chan struct{}), panicked: make(chan struct{}, 1)}
	options := rpc.Options{
		Ready: s.ready, Panicked: func() { s.panicked <- struct{}{} },
		Typed: cri.TypedErrors(), Reasons: control.Reasons(), ForkLimit: func() string { return s.limit },
		Log: slog.New(slog.NewTextHandler(&s.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	change(&options)
	server := rpc.NewServer(options)
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "test.Service",
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Unary", Handler: func(srv any, ctx context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
			req := new(emptypb.Empty)
			if err := decode(req); err != nil {
				return nil, err
			}
			return interceptor(ctx, req, &grpc.UnaryServerInfo{Server: srv, FullMethod: "/test.Service/Unary"}, func(ctx context.Context, _ any) (any, error) {
				return new(emptypb.Empty), handle(ctx)
			})
		}}},
		Streams: []grpc.StreamDesc{{StreamName: "Stream", ServerStreams: true, Handler: func(_ any, ss grpc.ServerStream) error {
			return handle(ss.Context())
		}}},
	}, struct{}{})
	l := bufconn.Listen(1 << 16)
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	conn, err := grpc.NewClient("passthrough:///pipe", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	s.conn = conn
	return s
}

func (s *served) unary(ctx context.Context) (reason string, err error) {
	var trailer metadata.MD
	err = s.conn.Invoke(ctx, "/test.Service/Unary", new(emptypb.Empty), new(emptypb.Empty), grpc.Trailer(&trailer))
	return strings.Join(trailer.Get(api.ReasonTrailer), ","), err
}

func (s *served) stream(ctx context.Context) (reason string, err error) {
	stream, err := s.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/test.Service/Stream")
	if err != nil {
		return "", err
	}
	err = stream.RecvMsg(new(emptypb.Empty))
	return strings.Join(stream.Trailer().Get(api.ReasonTrailer), ","), err
}

// TestErrors: each error of the core has its code, text and reason.
func TestErrors(t *testing.T) {
	var next error
	s := serve(t, func(context.Context) error { return next })
	close(s.ready)
	for _, c := range []struct {
		err    error
		code   codes.Code
		reason string
		prefix string // of the text
		suffix string
		limit  string // of processes, that is reached
	}{
		{err: errdefs.ErrAborted, code: codes.Aborted},
		{err: errdefs.ErrAlreadyExists, code: codes.AlreadyExists},
		{err: errdefs.ErrInvalidArgument, code: codes.InvalidArgument},
		{err: errdefs.ErrFailedPrecondition, code: codes.FailedPrecondition},
		{err: context.Canceled, code: codes.Canceled},
		{err: context.DeadlineExceeded, code: codes.DeadlineExceeded},
		{err: oci.ErrTimeout, code: codes.DeadlineExceeded},
		{err: oci.ErrRuntimeHangs, code: codes.DeadlineExceeded},
		{err: oci.ErrNotRunning, code: codes.FailedPrecondition},
		{err: oci.ErrCommandNotFound, code: codes.InvalidArgument, reason: api.ReasonCommandNotFound},
		{err: oci.ErrCommandNotExecutable, code: codes.InvalidArgument, reason: api.ReasonCommandNotExecutable},
		{err: state.ErrNotFound, code: codes.NotFound},
		{err: state.ErrAmbiguous, code: codes.InvalidArgument},
		{err: storage.ErrImageNotFound, code: codes.NotFound, reason: api.ReasonImageNotFound},
		{err: storage.ErrNotLoggedIn, code: codes.NotFound, reason: api.ReasonNotLoggedIn},
		{err: storage.ErrBadReference, code: codes.InvalidArgument},
		{err: storage.ErrUnauthorized, code: codes.PermissionDenied},
		{err: storage.ErrImageInUse, code: codes.FailedPrecondition},
		{err: storage.ErrNoSpace, code: codes.ResourceExhausted},
		{err: storage.ErrCorrupt, code: codes.DataLoss},
		{err: storage.ErrReadOnlyImage, code: codes.FailedPrecondition},
		{err: storage.ErrUnsupported, code: codes.FailedPrecondition},
		{err: storage.ErrIDRange, code: codes.FailedPrecondition},
		{err: storage.ErrRegistryUnavailable, code: codes.Unknown, prefix: crierrors.ErrRegistryUnavailable.Error() + ": "},
		{err: storage.ErrSignature, code: codes.Unknown, prefix: crierrors.ErrSignatureValidationFailed.Error() + ": "},
		{err: container.ErrImageVolume, code: codes.Unknown, prefix: crierrors.ErrImageVolumeMountFailed.Error() + ": "},
		{err: container.ErrMountSource, code: codes.FailedPrecondition},
		{err: ocispec.ErrInvalid, code: codes.InvalidArgument},
		{err: ocispec.ErrRecursiveReadOnly, code: codes.Unknown, prefix: crierrors.ErrRROUnsupported.Error() + ": "},
		{err: stream.ErrInvalid, code: codes.InvalidArgument},
		{err: stream.ErrBusy, code: codes.ResourceExhausted},
		{err: stream.ErrClosed, code: codes.Unavailable},
		{err: cgroup.ErrBadParent, code: codes.InvalidArgument},
		{err: netns.ErrBadPod, code: codes.InvalidArgument},
		{err: netns.ErrBadSubnet, code: codes.InvalidArgument},
		{err: netns.ErrPortTaken, code: codes.AlreadyExists}, // no NameTaken
		{err: netns.ErrNoAddress, code: codes.ResourceExhausted},
		{err: netns.ErrFull, code: codes.ResourceExhausted},
		{err: netns.ErrNotReady, code: codes.Unavailable},
		{err: netns.ErrSysctl, code: codes.InvalidArgument},
		{err: pod.ErrNameTaken, code: codes.AlreadyExists, reason: api.ReasonNameTaken},
		{err: rootless.ErrPortPrivileged, code: codes.PermissionDenied},
		{err: &os.PathError{Op: "write", Path: "/f", Err: unix.ENOSPC}, code: codes.ResourceExhausted},
		{err: unix.EDQUOT, code: codes.ResourceExhausted},
		{err: unix.EMFILE, code: codes.ResourceExhausted, suffix: "; raise the daemon's limit of open files: LimitNOFILE= of its unit, ulimit -n"},
		{err: unix.ENFILE, code: codes.ResourceExhausted},
		{err: unix.EAGAIN, code: codes.Unavailable, suffix: "; no limit of processes that can be seen from here is reached (pids.max, RLIMIT_NPROC, kernel.threads-max, kernel.pid_max): the machine was busy, try again"},
		{err: unix.EAGAIN, limit: "RLIMIT_NPROC: 9 of 9", code: codes.ResourceExhausted, suffix: "; the limit of processes is reached: RLIMIT_NPROC: 9 of 9"},
		{err: fmt.Errorf("%w: %w", oci.ErrProcessLimit, unix.EAGAIN), limit: "another", code: codes.ResourceExhausted},
		{err: unix.ENOMEM, code: codes.ResourceExhausted},
		{err: unix.ENOENT, code: codes.Unknown},
		{err: errors.New("of no class"), code: codes.Unknown},
	} {
		next, s.limit = fmt.Errorf("do it: %w", c.err), c.limit
		for name, call := range map[string]func(context.Context) (string, error){"unary": s.unary, "stream": s.stream} {
			reason, err := call(t.Context())
			got, _ := status.FromError(err)
			if want := c.prefix + next.Error() + c.suffix; got.Code() != c.code || got.Message() != want || reason != c.reason {
				t.Errorf("%v, %s: %v %q, reason %q; want %v %q, reason %q", c.err, name, got.Code(), got.Message(), reason, c.code, want, c.reason)
			}
		}
	}
}

// TestFirstMatch: what an error of several classes is.
func TestFirstMatch(t *testing.T) {
	var next error
	s := serve(t, func(context.Context) error { return next })
	close(s.ready)
	for _, c := range []struct {
		err  error
		code codes.Code
	}{
		{fmt.Errorf("%w: %w", errdefs.ErrAborted, context.Canceled), codes.Aborted},
		{fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, container.ErrMountSource), codes.InvalidArgument},
		{fmt.Errorf("%w: %w", container.ErrMountSource, unix.EMFILE), codes.FailedPrecondition},
		{fmt.Errorf("%w: %w", netns.ErrPortTaken, rootless.ErrPortPrivileged), codes.AlreadyExists},
		{fmt.Errorf("%w: %w", storage.ErrNoSpace, storage.ErrCorrupt), codes.ResourceExhausted},
		{errors.Join(errdefs.ErrFailedPrecondition, state.ErrNotFound), codes.NotFound},
		{fmt.Errorf("%w: %w", storage.ErrRegistryUnavailable, context.DeadlineExceeded), codes.Unknown},
		{status.Error(codes.Unimplemented, "not here"), codes.Unimplemented},
		{nil, codes.OK},
	} {
		next = c.err
		if _, err := s.unary(t.Context()); status.Code(err) != c.code {
			t.Errorf("%v: %v, want %v", c.err, err, c.code)
		}
	}
}

// TestPanic: the client gets an error, the log the stack, and the server is told.
func TestPanic(t *testing.T) {
	var next any
	s := serve(t, func(context.Context) error { panic(next) })
	close(s.ready)
	for _, c := range []struct {
		panic any
		code  codes.Code
		text  string
	}{
		{"secret", codes.Internal, "internal error, see the log; the server is started anew"},
		{errors.New("secret"), codes.Internal, "internal error, see the log; the server is started anew"},
		{os.NewSyscallError("open", syscall.EMFILE), codes.ResourceExhausted, "open: too many open files; the server is started anew"},
	} {
		next = c.panic
		for name, call := range map[string]func(context.Context) (string, error){"Unary": s.unary, "Stream": s.stream} {
			_, err := call(t.Context())
			if got, _ := status.FromError(err); got.Code() != c.code || got.Message() != name+": "+c.text {
				t.Errorf("%v: %v, want %v: %s: %s", c.panic, err, c.code, name, c.text)
			}
			select {
			case <-s.panicked:
			default:
				t.Errorf("%v: Panicked was not called before the answer", c.panic)
			}
		}
	}
	if text := s.log.String(); !strings.Contains(text, "panic=secret") || !strings.Contains(text, "rpc_test.go") {
		t.Errorf("the log has no panic with its stack:\n%s", text)
	}
}

// TestReady: requests wait for the server to be ready, and end with their context.
func TestReady(t *testing.T) {
	calls := make(chan struct{}, 3)
	s := serve(t, func(context.Context) error { calls <- struct{}{}; return nil })
	var waiting sync.WaitGroup
	for _, call := range []func(context.Context) (string, error){s.unary, s.stream} {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := call(ctx); status.Code(err) != codes.Canceled {
			t.Errorf("a canceled request: %v", err)
		}
	}
	waiting.Go(func() {
		if _, err := s.unary(t.Context()); err != nil {
			t.Errorf("a request that waited: %v", err)
		}
	})
	if len(calls) != 0 {
		t.Error("a request was served before the server was ready")
	}
	close(s.ready)
	waiting.Wait()
	if len(calls) != 1 {
		t.Errorf("%d requests were served, want 1", len(calls))
	}
}
