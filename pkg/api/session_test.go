package api_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/subpod/subpod/pkg/api"
)

// sessions is a server whose only call is Session.
type sessions struct {
	api.Server
	session func(context.Context, *api.SessionStreams) (*api.SessionExit, error)
}

func (s sessions) Session(ctx context.Context, ss *api.SessionStreams) (*api.SessionExit, error) {
	return s.session(ctx, ss)
}

func dial(t *testing.T, impl api.Server) *grpc.ClientConn {
	t.Helper()
	l, server := bufconn.Listen(1<<16), grpc.NewServer(grpc.StreamInterceptor(func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
		watched := &watchedStream{ServerStream: ss, t: t}
		defer func() { watched.returned = true }()
		return handle(srv, watched)
	}))
	api.Register(server, impl)
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	conn, err := grpc.NewClient("passthrough:///pipe", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// watchedStream reports what is sent when its handler has returned, as gRPC does not
// allow. The race detector reports what may be: returned is not guarded on purpose.
type watchedStream struct {
	grpc.ServerStream
	t        *testing.T
	returned bool
}

func (s *watchedStream) SendMsg(m any) error {
	if s.returned {
		s.t.Error("a message is sent after the handler has returned")
	}
	return s.ServerStream.SendMsg(m)
}

// TestSession: the request, all streams, the end of the input and the exit arrive.
func TestSession(t *testing.T) {
	conn := dial(t, sessions{session: func(_ context.Context, ss *api.SessionStreams) (*api.SessionExit, error) {
		if ss.Request.Kind != api.SessionExec || !ss.Request.Stdin || !ss.Request.Output {
			return nil, errors.New("another request")
		}
		ss.Made(api.Made{PodID: "p", ContainerID: "c"})
		ss.Ready()
		ss.Ready() // once only
		data, err := io.ReadAll(ss.Input)
		if err != nil {
			return nil, err
		}
		if _, err := ss.Errors.Write([]byte("errors")); err != nil {
			return nil, err
		}
		if _, err := ss.Output.Write(data); err != nil {
			return nil, err
		}
		return &api.SessionExit{Code: 7, Reason: "Error"}, nil
	}})
	input := strings.Repeat("input ", 50_000) // several frames
	var out, errs bytes.Buffer
	var made api.Made
	exit, err := api.Session(t.Context(), conn, api.SessionRequest{Kind: api.SessionExec}, api.Streams{
		Input: strings.NewReader(input), Output: &out, Errors: &errs, Made: func(m api.Made) { made = m },
	})
	if err != nil || exit.Code != 7 || exit.Reason != "Error" {
		t.Errorf("exit %+v, %v", exit, err)
	}
	if out.String() != input || errs.String() != "errors" || made.ContainerID != "c" {
		t.Errorf("%d bytes of output, errors %q, made %+v", out.Len(), errs.String(), made)
	}
}

// TestWriteAfterSession: what copies output may still write when the session has ended.
// It gets an error, and the stream is not touched (the race detector sees it).
func TestWriteAfterSession(t *testing.T) {
	for _, failed := range []error{nil, errors.New("failed")} {
		var writers sync.WaitGroup
		late := make(chan error, 1)
		released := make(chan struct{})
		conn := dial(t, sessions{session: func(_ context.Context, ss *api.SessionStreams) (*api.SessionExit, error) {
			writers.Go(func() {
				for {
					if _, err := ss.Output.Write(make([]byte, 100)); err != nil {
						return
					}
				}
			})
			writers.Go(func() {
				<-released
				_, err := ss.Errors.Write([]byte("late"))
				late <- err
			})
			return &api.SessionExit{}, failed
		}})
		for range 20 {
			released = make(chan struct{})
			_, err := api.Session(t.Context(), conn, api.SessionRequest{Kind: api.SessionAttach}, api.Streams{Output: io.Discard, Errors: io.Discard})
			if (err != nil) != (failed != nil) {
				t.Fatalf("the session returned %v, want %v", err, failed)
			}
			close(released)
			if err := <-late; !errors.Is(err, io.ErrClosedPipe) {
				t.Errorf("a late write returned %v, want io.ErrClosedPipe", err)
			}
			writers.Wait()
		}
	}
}
