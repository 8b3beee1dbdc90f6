package storage

import (
	"context"
	"errors"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// patience is how long these tests wait for what must come at once: they fail then.
const patience = time.Minute

// blockingRegistry serves images by repository and blocks the download of some blobs
// until the test lets them go on.
type blockingRegistry struct {
	*fakeRegistry
	asked map[digest.Digest]chan struct{} // closed when the blob is asked for
	serve map[digest.Digest]chan []byte   // what the test sends is served
}

func startBlocking(t *testing.T, images map[string]built, block ...digest.Digest) *blockingRegistry {
	t.Helper()
	b := &blockingRegistry{asked: map[digest.Digest]chan struct{}{}, serve: map[digest.Digest]chan []byte{}}
	for _, d := range block {
		b.asked[d], b.serve[d] = make(chan struct{}), make(chan []byte, 1)
	}
	b.fakeRegistry = startFake(t, built{}, func(w http.ResponseWriter, r *http.Request) bool {
		parts := strings.Split(r.URL.Path, "/") // /v2/REPO/blobs/DIGEST
		if len(parts) != 5 {
			return false
		}
		d := digest.Digest(parts[4])
		if asked := b.asked[d]; asked != nil && r.Method == http.MethodGet {
			w.WriteHeader(http.StatusOK)
			w.(http.Flusher).Flush()
			close(asked)
			select {
			case data := <-b.serve[d]:
				w.Write(data)
			case <-r.Context().Done():
			}
			return true
		}
		b.fakeRegistry.serve(w, r, images[parts[2]])
		return true
	})
	return b
}

// within returns what do returns, or ends the test when it takes too long.
func within(t *testing.T, what string, do func() error) error {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- do() }()
	return receive(t, what, ended)
}

func receive[T any](t *testing.T, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("%s waits for somebody else", what)
		panic("not reached")
	}
}

// background starts a pull and returns where its error comes.
func background(s *Store, ref string) <-chan error {
	ended := make(chan error, 1)
	go func() {
		_, err := s.Images.Pull(context.Background(), PullRequest{Ref: ref})
		ended <- err
	}()
	return ended
}

func layerCount(t *testing.T, s *Store) int {
	t.Helper()
	layers, err := s.layers.cs.Layers()
	if err != nil {
		t.Fatal(err)
	}
	return len(layers)
}

func blockingStore(t *testing.T, host string) *Store {
	o := testOptions(t, t.TempDir(), DriverFuse)
	o.MaxParallelDownloads = 1 // so that layers come one after the other
	o.PullTimeout = time.Hour
	insecureConf(t, o, host)
	return openStore(t, o)
}

// TestSlowRegistryHoldsNobodyUp: a pull that never ends, and one that fails beside it,
// keep nobody else from pulling, loading, listing and removing.
func TestSlowRegistryHoldsNobodyUp(t *testing.T) {
	ctx := context.Background()
	slow := build(t, imageSpec{layers: []layer{{"a": {content: "slow"}}}})
	bad := build(t, imageSpec{layers: []layer{{"a": {content: "bad, first"}}, {"b": {content: "bad, second"}}}})
	good := sample(t, "good")
	bad.blobs[bad.layers[1]] = []byte("not what its digest says")
	r := startBlocking(t, map[string]built{"slow": slow, "bad": bad, "good": good}, slow.layers[0])
	s := blockingStore(t, r.host)
	slowEnds := background(s, r.host+"/slow:1")
	receive(t, "the slow pull", r.asked[slow.layers[0]])

	err := within(t, "the bad pull", func() error {
		_, err := s.Images.Pull(ctx, PullRequest{Ref: r.host + "/bad:1"})
		return err
	})
	if !errors.Is(err, ErrCorrupt) {
		t.Errorf("the bad pull: %v", err)
	}
	err = within(t, "another pull", func() error {
		_, err := s.Images.Pull(ctx, PullRequest{Ref: r.host + "/good:1"})
		return err
	})
	if err != nil {
		t.Error(err)
	}
	archive := filepath.Join(t.TempDir(), "app.tar")
	dockerArchive(t, archive, "loaded")
	err = within(t, "a load", func() error {
		_, err := s.Images.Load(ctx, archive)
		return err
	})
	if err != nil {
		t.Error(err)
	}
	within(t, "the removal of what the bad pull left", func() error { s.Images.work.Wait(); return nil })
	if n := layerCount(t, s); n != len(good.layers)+1 {
		t.Errorf("%d layers, want those of the two images", n)
	}
	if err := within(t, "a removal", func() error { return s.Images.Remove(ctx, r.host+"/good:1") }); err != nil {
		t.Error(err)
	}
	select {
	case err := <-slowEnds:
		t.Errorf("the slow pull has ended: %v", err)
	default:
	}
	r.serve[slow.layers[0]] <- slow.blobs[slow.layers[0]]
	if err := receive(t, "the slow pull", slowEnds); err != nil {
		t.Error(err)
	}
}

// TestFailedPullLeavesWhatOthersNeed: two pulls have a layer in common. One fails while
// the other relies on the layer that the first has made. What the last one leaves is
// removed.
func TestFailedPullLeavesWhatOthersNeed(t *testing.T) {
	ctx := context.Background()
	base := layer{"base": {content: "in common"}}
	for name, ends := range map[string]string{"the other succeeds": "good", "both fail": "bad"} {
		t.Run(name, func(t *testing.T) {
			first := build(t, imageSpec{layers: []layer{base, {"a": {content: "first"}}}})
			second := build(t, imageSpec{layers: []layer{base, {"a": {content: "second"}}}})
			r := startBlocking(t, map[string]built{"first": first, "second": second}, first.layers[1], second.layers[1])
			s := blockingStore(t, r.host)
			firstEnds := background(s, r.host+"/first:1")
			receive(t, "the first pull", r.asked[first.layers[1]])
			if n := layerCount(t, s); n != 1 {
				t.Fatalf("%d layers, want the first pull's base", n)
			}
			secondEnds := background(s, r.host+"/second:1")
			receive(t, "the second pull", r.asked[second.layers[1]])
			if n := r.count("second/blobs/" + base0(second)); n != 0 {
				t.Fatalf("the second pull has downloaded the base %d times, it must rely on the first's", n)
			}
			r.serve[first.layers[1]] <- []byte("bad")
			if err := receive(t, "the first pull", firstEnds); !errors.Is(err, ErrCorrupt) {
				t.Errorf("the first pull: %v", err)
			}
			within(t, "the removal of what the first pull left", func() error { s.Images.work.Wait(); return nil })
			if n := layerCount(t, s); n != 1 {
				t.Errorf("%d layers, want the base, which the second pull needs", n)
			}
			if ends == "bad" {
				r.serve[second.layers[1]] <- []byte("bad")
				if err := receive(t, "the second pull", secondEnds); !errors.Is(err, ErrCorrupt) {
					t.Errorf("the second pull: %v", err)
				}
				wantClean(t, s, 0)
				return
			}
			r.serve[second.layers[1]] <- second.blobs[second.layers[1]]
			if err := receive(t, "the second pull", secondEnds); err != nil {
				t.Fatal(err)
			}
			if problems, err := s.Images.Check(ctx, false); err != nil || len(problems) > 0 {
				t.Errorf("problems %v, %v", problems, err)
			}
			if err := s.Images.Remove(ctx, r.host+"/second:1"); err != nil {
				t.Error(err)
			}
			wantClean(t, s, 0)
		})
	}
}

// base0 is the digest of an image's first layer.
func base0(b built) string { return b.layers[0].String() }

// TestHolds: a layer that is being removed is held only afterwards, and none that
// is held is removed.
func TestHolds(t *testing.T) {
	var h holds
	ctx := context.Background()
	end, err := h.remove(ctx, "a")
	if end == nil || err != nil {
		t.Fatalf("a layer that nobody holds can't be removed: %v", err)
	}
	if err := h.hold(ctx, "b"); err != nil { // another layer does not wait
		t.Error(err)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if err := h.hold(cancelled, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("hold of a layer that is being removed: %v, want the end of the context", err)
	}
	if _, err := h.remove(cancelled, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("second removal: %v, want the end of the context", err)
	}
	held := make(chan error, 1)
	go func() { held <- h.hold(ctx, "a") }()
	end()
	if err := receive(t, "hold", held); err != nil {
		t.Error(err)
	}
	if end, _ := h.remove(ctx, "a"); end != nil {
		t.Error("removed while held")
	}
	h.release("a", "b")
	if end, _ := h.remove(ctx, "a"); end == nil {
		t.Error("a layer that was released can't be removed")
	}
}
