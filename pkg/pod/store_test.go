package pod

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/subpod/subpod/pkg/events"
	"github.com/subpod/subpod/pkg/oci"
	"github.com/subpod/subpod/pkg/pod/sandbox"
	"github.com/subpod/subpod/pkg/state"
)

// noSandboxes are pod sandboxes that consist of nothing.
type noSandboxes struct{}

func (noSandboxes) Build(context.Context, sandbox.Plan, *state.Pod) error { return nil }
func (noSandboxes) Teardown(context.Context, state.Pod) error             { return nil }
func (noSandboxes) Lost(state.Pod) string                                 { return "" }
func (noSandboxes) Limit(state.Pod) ([]string, error)                     { return nil, nil }
func (noSandboxes) Renamed(context.Context, sandbox.Plan, state.Pod)      {}
func (noSandboxes) Reconcile(context.Context, []state.Pod) error          { return nil }

type noOrphans struct{}

func (noOrphans) Sweep(context.Context) error { return nil }

// storeManager returns a Manager over a state.Store. The lifecycle tests have a fake of
// that and run all orders of its steps; here its own steps are in between.
func storeManager(t *testing.T) (*Manager, *state.Store) {
	store, err := state.Open(filepath.Join(t.TempDir(), "state.db"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	m := New(Options{
		NodeID:   "node",
		Handlers: Handlers{Default: "crun", Known: map[string]oci.Features{"crun": {}}},
		State:    store, Sandboxes: noSandboxes{}, Orphans: noOrphans{},
		Events: events.New(0), Log: slog.New(slog.DiscardHandler),
	})
	m.Recover(t.Context())
	t.Cleanup(m.Close)
	return m, store
}

// TestStopAndRemoveAtOnce: stopping and removing are idempotent for concurrent callers,
// too, and the name is free after it.
func TestStopAndRemoveAtOnce(t *testing.T) {
	m, store := storeManager(t)
	ctx := t.Context()
	for range rounds(3000) {
		id, err := m.RunPod(ctx, podConfig("web", ""), "")
		if err != nil {
			t.Fatal(err)
		}
		var group sync.WaitGroup
		for _, request := range []func(context.Context, string) error{m.RemovePod, m.StopPod, m.RemovePod} {
			group.Go(func() {
				if err := request(ctx, id); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
	}
	if n := len(store.Pods()); n > 0 {
		t.Errorf("%d records are left", n)
	}
}

// TestRunWhileTheNamesakeIsRemoved: RunPod makes a pod sandbox, or returns the one that
// is there, or says that the name is taken. It never says that it finds nothing.
func TestRunWhileTheNamesakeIsRemoved(t *testing.T) {
	m, store := storeManager(t)
	ctx := t.Context()
	id, err := m.RunPod(ctx, podConfig("web", ""), "")
	if err != nil {
		t.Fatal(err)
	}
	for range rounds(5000) {
		var group sync.WaitGroup
		group.Go(func() {
			if err := m.RemovePod(ctx, id); err != nil {
				t.Error(err)
			}
		})
		answers := [2]string{}
		for i := range answers {
			group.Go(func() {
				var err error
				answers[i], err = m.RunPod(ctx, podConfig("web", ""), "")
				if err != nil && !errors.Is(err, errdefs.ErrAlreadyExists) {
					t.Error(err)
				}
			})
		}
		group.Wait()
		pods := store.Pods()
		if len(pods) > 1 {
			t.Fatalf("%d pod sandboxes have one name", len(pods))
		}
		for _, answer := range answers {
			if answer != "" && answer != id && (len(pods) == 0 || pods[0].ID != answer) {
				t.Fatalf("RunPod returned %s, which is not there", answer)
			}
		}
		if id, err = m.RunPod(ctx, podConfig("web", ""), ""); err != nil {
			t.Fatal(err)
		}
	}
}

// rounds is how often a test is repeated: a tenth with -short.
func rounds(n int) int {
	if testing.Short() {
		return n / 10
	}
	return n
}
