package rpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// TestNotReady: a request whose context ends before the server is ready is not served,
// and its error tells the client to try again.
func TestNotReady(t *testing.T) {
	i := &interceptor{Options{Ready: make(chan struct{}), Log: slog.New(slog.DiscardHandler)}}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := i.serve(ctx, "/s/M", func(context.Context) error { t.Error("served"); return nil })
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "try again") {
		t.Errorf("error %v, want Unavailable", err)
	}
}

// TestLevels: what a client does wrong is a warning, what is part of normal work is not.
func TestLevels(t *testing.T) {
	ready := make(chan struct{})
	close(ready)
	for _, c := range []struct {
		err  error
		warn bool
	}{
		{nil, false},
		{context.Canceled, false},
		{status.Error(codes.NotFound, "no"), false},
		{errors.New("no"), true},
	} {
		var text bytes.Buffer
		i := &interceptor{Options{Ready: ready, Log: slog.New(slog.NewTextHandler(&text, nil))}}
		_ = i.serve(t.Context(), "/s/M", func(context.Context) error { return c.err })
		if got := strings.Contains(text.String(), "level=WARN"); got != c.warn {
			t.Errorf("%v: the log is %q", c.err, text.String())
		}
	}
}

// TestLongErrors: what a client has chosen the length of fills neither the log nor the
// answer; the cause is still there.
func TestLongErrors(t *testing.T) {
	ready := make(chan struct{})
	close(ready)
	long := strings.Repeat("ä", 1<<20)
	for name, give := range map[string]error{
		"an error": fmt.Errorf("%w: %s: the cause", errdefs.ErrInvalidArgument, long), "a status": status.Error(codes.InvalidArgument, long+": the cause"),
	} {
		var text bytes.Buffer
		i := &interceptor{Options{Ready: ready, Log: slog.New(slog.NewTextHandler(&text, nil))}}
		err := i.serve(t.Context(), "/s/M", func(context.Context) error { return give })
		if s := status.Convert(err); s.Code() != codes.InvalidArgument || !strings.HasSuffix(s.Message(), ": the cause") || !utf8.ValidString(s.Message()) {
			t.Errorf("%s: %v, %.100s", name, s.Code(), s.Message())
		}
		if len(err.Error()) > 2*maxMessage || text.Len() > 4*maxMessage {
			t.Errorf("%s: the answer has %d bytes, the log %d", name, len(err.Error()), text.Len())
		}
	}
}
