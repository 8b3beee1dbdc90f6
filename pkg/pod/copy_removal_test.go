package pod

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/subpod/subpod/pkg/state"
)

// dirRoots are root file systems that are one directory.
type dirRoots struct {
	dir     string
	mounted atomic.Int32
}

func (d *dirRoots) OpenRoot(state.Container) (*os.File, error) { return os.Open(d.dir) }

func (d *dirRoots) MountRoot(context.Context, state.Container) (*os.File, error) {
	d.mounted.Store(1)
	return os.Open(d.dir)
}

func (d *dirRoots) UnmountRoot(context.Context, state.Container) error {
	d.mounted.Store(0)
	return nil
}

// stalled is a client that is stopped: it takes one piece, or sends one, and then
// nothing until its request is over.
type stalled struct {
	data  []byte
	begun chan struct{}
	over  chan struct{}
}

func newStalled(data []byte) *stalled {
	return &stalled{data: data, begun: make(chan struct{}), over: make(chan struct{})}
}

func (s *stalled) Write(b []byte) (int, error) { return len(b), s.stall() }

func (s *stalled) Read(b []byte) (int, error) {
	if n := copy(b, s.data); n > 0 {
		s.data = s.data[n:]
		return n, nil
	}
	return 0, s.stall()
}

func (s *stalled) stall() error {
	close(s.begun)
	<-s.over
	return context.Canceled
}

// archive is a tar stream without an end.
func archive(t *testing.T) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "new", Typeflag: tar.TypeReg, Mode: 0o644, Size: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// copierRig returns a Copier over a container, and the directory with its files.
func copierRig(t *testing.T, before start, exited bool) (*rig, *Copier, *dirRoots) {
	r := newRig(t, before)
	t.Cleanup(r.m.Close)
	if exited {
		if err := r.m.StopContainer(r.ctx, r.ctr, 0); err != nil {
			t.Fatal(err)
		}
	}
	roots := &dirRoots{dir: t.TempDir()}
	if err := os.WriteFile(filepath.Join(roots.dir, "big"), make([]byte, 8<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	return r, &Copier{Manager: r.m, Roots: roots}, roots
}

// TestRemovalDoesNotWaitForACopy: a client that is stopped in the middle of a copy, in
// either direction, holds up neither a stop nor a removal; nothing of the copy is left.
func TestRemovalDoesNotWaitForACopy(t *testing.T) {
	for name, copies := range map[string]func(*rig, *Copier, *stalled) error{
		"out": func(r *rig, c *Copier, s *stalled) error { return c.Out(r.ctx, r.ctr, "/big", s) },
		"in":  func(r *rig, c *Copier, s *stalled) error { return c.In(r.ctx, r.ctr, "/", s) },
	} {
		for state, exited := range map[string]bool{"running": false, "exited": true} {
			t.Run(name+"/"+state, func(t *testing.T) {
				r, copier, _ := copierRig(t, withProcess, exited)
				goroutines := runtime.NumGoroutine()
				client := newStalled(archive(t))
				answer := make(chan error, 1)
				go func() { answer <- copies(r, copier, client) }()
				<-client.begun
				removed := make(chan error, 1)
				go func() {
					removed <- errors.Join(r.m.StopPod(r.ctx, r.pod), r.m.RemovePod(r.ctx, r.pod))
				}()
				select {
				case err := <-removed:
					if err != nil {
						t.Error(err)
					}
				case <-time.After(referenceTimeout / 2):
					t.Error("the removal waits for the client")
				}
				close(client.over)
				if err := <-answer; err == nil {
					t.Error("a copy that was cut short succeeded")
				}
				if err := copier.Out(r.ctx, r.ctr, "/big", io.Discard); !errors.Is(err, errGone) {
					t.Errorf("a copy from a container that was removed: %v", err)
				}
				wait(t, "goroutines of the copy to end", func() bool { return runtime.NumGoroutine() <= goroutines })
			})
		}
	}
}

// TestTheLastCopyUnmounts the root file system of an exited container.
func TestTheLastCopyUnmounts(t *testing.T) {
	r, copier, roots := copierRig(t, withProcess, true)
	first, second := newStalled(nil), newStalled(nil)
	answers := make(chan error, 2)
	for _, client := range []*stalled{first, second} {
		go func() { answers <- copier.Out(r.ctx, r.ctr, "/big", client) }()
		<-client.begun
	}
	close(first.over)
	<-answers
	wait(t, "the first copy to end", func() bool {
		r.m.references.mu.Lock()
		defer r.m.references.mu.Unlock()
		return len(r.m.references.m[r.ctr]) == 1
	})
	if _, _, err := copier.Info(r.ctx, r.ctr, "/big"); err != nil {
		t.Error(err)
	}
	if roots.mounted.Load() == 0 {
		t.Error("unmounted below the second copy")
	}
	close(second.over)
	<-answers
	wait(t, "the root file system to be unmounted", func() bool { return roots.mounted.Load() == 0 })
}

// wait waits until a condition holds.
func wait(t *testing.T, what string, holds func() bool) {
	for deadline := time.Now().Add(time.Minute); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
