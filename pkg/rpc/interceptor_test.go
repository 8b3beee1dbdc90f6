package rpc

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

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
