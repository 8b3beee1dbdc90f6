package pod

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/subpod/subpod/pkg/events"
	"github.com/subpod/subpod/pkg/state"
)

// rootAt is a rootOpener whose containers all have one directory as their root.
type rootAt string

func (r rootAt) OpenRoot(state.Container) (*os.File, error) { return os.Open(string(r)) }
func (r rootAt) MountRoot(context.Context, state.Container) (*os.File, error) {
	return os.Open(string(r))
}
func (r rootAt) UnmountRoot(context.Context, state.Container) error { return nil }

// newCopier returns a Copier with one exited container "c" whose root has a file
// "f" of the given size.
func newCopier(t *testing.T, size int64) *Copier {
	t.Helper()
	root := t.TempDir()
	f, err := os.Create(filepath.Join(root, "f"))
	if err == nil {
		err = errors.Join(f.Truncate(size), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld()
	w.containers["c"] = state.Container{ID: "c", PodID: "p", Status: state.ContainerStatus{Created: true, FinishedAt: time.Now()}}
	_, m := newServer(w, &scheduler{open: true, done: map[string]string{}}, events.New(8))
	t.Cleanup(m.Close)
	return &Copier{Manager: m, Roots: rootAt(root)}
}

// lateReader is a client that takes each piece only after the copy has had time to
// go on without it.
type lateReader struct{ io.Writer }

func (w lateReader) Write(p []byte) (int, error) {
	time.Sleep(20 * time.Millisecond)
	return w.Writer.Write(p)
}

// TestCopyOutSlowReader: the end of the reading in the container, while the client
// has not taken the last piece yet, does not end the copy with an error.
func TestCopyOutSlowReader(t *testing.T) {
	const size = 3*copyBuffer + 100
	c := newCopier(t, size)
	r, w := io.Pipe()
	go func() { w.CloseWithError(c.Out(t.Context(), "c", "/f", lateReader{w})) }()
	archive := tar.NewReader(r)
	if h, err := archive.Next(); err != nil || h.Size != size {
		t.Fatalf("the first entry: %+v, %v", h, err)
	}
	if n, err := io.Copy(io.Discard, archive); n != size || err != nil {
		t.Errorf("%d bytes, %v; want %d", n, err, size)
	}
	if _, err := archive.Next(); err != io.EOF {
		t.Errorf("the end of the copy: %v", err)
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		t.Errorf("the copy's result: %v", err)
	}
}

// TestCopyOfRemoved: a copy that a removal interrupts reports that.
func TestCopyOfRemoved(t *testing.T) {
	t.Run("out", func(t *testing.T) {
		c := newCopier(t, 100<<20)
		r, w := io.Pipe()
		go func() { w.CloseWithError(c.Out(t.Context(), "c", "/f", w)) }()
		if _, err := io.ReadFull(r, make([]byte, copyBuffer)); err != nil {
			t.Fatal(err)
		}
		removed := make(chan error, 1)
		go func() { removed <- c.Manager.references.end(t.Context(), "c") }()
		if err := <-removed; err != nil { // beside a client that does not read
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, r); !errors.Is(err, errRemoved) || !errors.Is(err, errdefs.ErrAborted) {
			t.Errorf("the copy: %v", err)
		}
	})
	t.Run("in", func(t *testing.T) {
		c := newCopier(t, 0)
		r, w := io.Pipe()
		t.Cleanup(func() { w.Close() })
		result := make(chan error, 1)
		go func() { result <- c.In(t.Context(), "c", "/", r) }()
		archive := tar.NewWriter(w)
		if err := archive.WriteHeader(&tar.Header{Name: "g", Mode: 0o600, Size: 100 << 20}); err != nil {
			t.Fatal(err)
		}
		if err := c.Manager.references.end(t.Context(), "c"); err != nil {
			t.Fatal(err)
		}
		if err := <-result; !errors.Is(err, errRemoved) || !errors.Is(err, errdefs.ErrAborted) {
			t.Errorf("the copy: %v", err)
		}
	})
}
