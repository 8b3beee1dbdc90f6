package storage

import (
	"context"
	"errors"
	"testing"
	"time"
)

// TestUnpackingIsProgress: a pull does not end because a layer takes longer to unpack
// than a registry may be silent. It ends when nothing is unpacked either.
func TestUnpackingIsProgress(t *testing.T) {
	s := openStore(t, testOptions(t, t.TempDir(), DriverVFS))
	s.layers.opts.PullTimeout = 100 * time.Millisecond
	w := &worker{im: s.Images, store: &holdingStore{}, tmp: t.TempDir()}
	w.ctx, w.cancel = context.WithCancelCause(context.Background())
	defer w.cancel(nil)
	w.store.unpacking.Add(1)
	w.progressed()
	go w.guard()
	select {
	case <-w.ctx.Done():
		t.Fatalf("ended while a layer was unpacked: %v", context.Cause(w.ctx))
	case <-time.After(10 * s.layers.opts.PullTimeout):
	}
	w.store.unpacking.Add(-1)
	select {
	case <-w.ctx.Done():
	case <-time.After(patience):
		t.Fatal("nothing moves, and the pull does not end")
	}
	if err := context.Cause(w.ctx); !errors.Is(err, errStalled) {
		t.Error(err)
	}
}
