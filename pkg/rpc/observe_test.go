package rpc_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/metadata"

	"github.com/subpod/subpod/pkg/rpc"
	"github.com/subpod/subpod/pkg/trace"
)

// TestObserve: each request is counted with its code, and has a trace that its steps are
// part of and that continues the client's; but for those that wait.
func TestObserve(t *testing.T) {
	var mu sync.Mutex
	var seen []rpc.Request
	recorder := &trace.Recorder{}
	var next error
	s := serveWith(t, func(o *rpc.Options) {
		o.Traces, o.Waiting = recorder, []string{"Stream"}
		o.Observe = func(r rpc.Request) {
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, r)
		}
	}, func(ctx context.Context) error {
		return trace.Do(ctx, "step", func() error { return next })
	})
	close(s.ready)
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	ctx := metadata.AppendToOutgoingContext(t.Context(), "traceparent", parent)
	_, _ = s.unary(ctx)
	next = errors.Join(errdefs.ErrNotFound, errors.New("of a step"))
	_, _ = s.unary(t.Context())
	_, _ = s.stream(t.Context())
	mu.Lock()
	defer mu.Unlock()
	if len(seen) != 3 {
		t.Fatalf("%d requests are counted: %+v", len(seen), seen)
	}
	for i, want := range []rpc.Request{
		{Service: "test.Service", Method: "Unary", Code: "OK"},
		{Service: "test.Service", Method: "Unary", Code: "NotFound"},
		{Service: "test.Service", Method: "Stream", Code: "NotFound", Waiting: true},
	} {
		got := seen[i]
		if got.Took <= 0 {
			t.Errorf("request %d took %v", i, got.Took)
		}
		if got.Took = 0; got != want {
			t.Errorf("request %d is %+v, want %+v", i, got, want)
		}
	}
	traces := recorder.Recent(10, func(*trace.Trace) bool { return true })
	if len(traces) != 2 {
		t.Fatalf("%d traces, want 2: a request that waits has none", len(traces))
	}
	if x := traces[0]; x.Name != "Unary" || x.Code != "OK" || len(x.Steps) != 1 || x.Steps[0].Failed || x.TraceID != trace.ParseRemote(parent).TraceID || x.Parent != trace.ParseRemote(parent).SpanID {
		t.Errorf("%+v", x)
	}
	if x := traces[1]; x.Code != "NotFound" || x.Error != next.Error() || !x.Steps[0].Failed || x.Parent != 0 {
		t.Errorf("%+v", x)
	}
}

// TestObserveStart: the time until the server is ready is part of a request, and one that it
// was too long for is counted and logged.
func TestObserveStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		codes := make(chan string, 2)
		recorder := &trace.Recorder{}
		s := serveWith(t, func(o *rpc.Options) {
			o.Traces, o.Observe = recorder, func(r rpc.Request) { codes <- r.Code }
		}, func(context.Context) error { return nil })
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if _, err := s.unary(ctx); err == nil {
			t.Error("a request was served before the server was ready")
		}
		if code := <-codes; code != "Unavailable" || !strings.Contains(s.log.String(), "still reads its state back") {
			t.Errorf("counted as %s; the log: %s", code, s.log.String())
		}
		time.AfterFunc(50*time.Millisecond, func() { close(s.ready) })
		if _, err := s.unary(t.Context()); err != nil {
			t.Error(err)
		}
		if code := <-codes; code != "OK" {
			t.Errorf("counted as %s", code)
		}
		traces := recorder.Recent(10, func(*trace.Trace) bool { return true })
		if len(traces) != 2 || len(traces[1].Steps) != 1 || traces[1].Steps[0].Name != "wait for the server's start" || traces[1].Took != 50*time.Millisecond {
			t.Errorf("traces %+v", traces)
		}
	})
}
