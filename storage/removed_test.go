package storage

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
)

// TestRemovedWhilePulled: an image is removed that has a layer in common with one that is
// being pulled, which thought that it had it. The pull gets it anew.
func TestRemovedWhilePulled(t *testing.T) {
	ctx := context.Background()
	base := layer{"base": {content: "in common"}}
	first := build(t, imageSpec{layers: []layer{base}})
	second := build(t, imageSpec{layers: []layer{base, {"own": {content: "own"}}}})
	images := map[string]built{"first": first, "second": second}
	asked, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	var f *fakeRegistry
	f = startFake(t, built{}, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, second.layers[1].String()) {
			once.Do(func() { close(asked) })
			select {
			case <-goOn:
			case <-r.Context().Done():
			}
		}
		if parts := strings.Split(r.URL.Path, "/"); len(parts) == 5 {
			f.serve(w, r, images[parts[2]])
			return true
		}
		return false
	})
	s := blockingStore(t, f.host)
	if _, err := s.Images.Pull(ctx, PullRequest{Ref: f.host + "/first:1"}); err != nil {
		t.Fatal(err)
	}
	ends := background(s, f.host+"/second:1")
	receive(t, "the pull", asked)
	if err := s.Images.Remove(ctx, f.host+"/first:1"); err != nil {
		t.Fatal(err)
	}
	t.Log("layers:", layerCount(t, s))
	close(goOn)
	if err := receive(t, "the pull", ends); err != nil {
		t.Error(err)
	}
	img, err := s.Images.Get(ctx, f.host+"/second:1")
	if err != nil || img.ID != second.id() {
		t.Errorf("%v %v", img.ID, err)
	}
	s.Images.work.Wait()
	if n := layerCount(t, s); n != 2 {
		t.Errorf("%d layers, want 2", n)
	}
}

// TestFailedLoadLeavesWhatWasThere: a transfer that fails does not remove an image that
// was there before, although it has no name.
func TestFailedLoadLeavesWhatWasThere(t *testing.T) {
	ctx := context.Background()
	img := sample(t, "there")
	f := startFake(t, img, nil)
	s := fakeStore(t, f)
	got, err := s.Images.Pull(ctx, PullRequest{Ref: f.host + "/app:v1"})
	if err != nil {
		t.Fatal(err)
	}
	s.Images.work.Wait()
	if err := s.layers.cs.RemoveNames(got.ID, append(got.RepoTags, got.RepoDigests...)); err != nil {
		t.Fatal(err)
	}
	err = s.Images.transfer(ctx, func(tr *transfer) error {
		return errors.Join(tr.markDirty(), tr.hold(imageKey(got.ID)), errClosed)
	})
	if !errors.Is(err, errClosed) {
		t.Fatal(err)
	}
	if _, err := s.Images.Get(ctx, got.ID); err != nil {
		t.Error(err)
	}
	if len(s.Images.held.holders) != 0 {
		t.Errorf("held: %v", s.Images.held.holders)
	}
}
