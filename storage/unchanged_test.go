package storage

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	fakes "github.com/subpod/subpod/tests/registry"
)

// TestPullUnchanged: an image whose name still has the same manifest costs one question,
// whether by tag or by digest, and the registry is asked for it each time.
func TestPullUnchanged(t *testing.T) {
	one, two := sample(t, "one"), sample(t, "two")
	refuse := false
	f := startBad(t, fakes.FakeOptions{Fault: func(w http.ResponseWriter, r *http.Request) bool {
		if refuse && strings.Contains(r.URL.Path, "/manifests/") {
			http.Error(w, `{"errors":[{"code":"DENIED"}]}`, http.StatusForbidden)
			return true
		}
		return false
	}}, one)
	s := badStore(t, f)
	for _, ref := range []string{f.Addr + "/app:v1", f.Addr + "/app@" + one.digest().String()} {
		first := pullRef(t, s, ref)
		manifests, blobs := f.Requests("/manifests/"), f.Requests("/blobs/")
		if got := pullRef(t, s, ref); got.ID != first.ID {
			t.Errorf("%s: pulled %s, want %s", ref, got.ID, first.ID)
		}
		if m, b := f.Requests("/manifests/")-manifests, f.Requests("/blobs/")-blobs; m != 1 || b != 0 {
			t.Errorf("%s: %d questions for manifests and %d for blobs, want 1 and 0", ref, m, b)
		}
	}
	refuse = true
	if _, err := s.Images.Pull(context.Background(), PullRequest{Ref: f.Addr + "/app:v1"}); !errors.Is(err, ErrUnauthorized) {
		t.Errorf("an image here that the registry refuses: %v, want ErrUnauthorized", err)
	}
	refuse = false
	f.Push("app", "v1", v1.MediaTypeImageManifest, two.manifest, two.blobs)
	manifests := f.Requests("/manifests/")
	if got := pullRef(t, s, f.Addr+"/app:v1"); got.ID != two.id() {
		t.Errorf("pulled %s, want the new image %s", got.ID, two.id())
	}
	if m := f.Requests("/manifests/") - manifests; m != 1 {
		t.Errorf("%d questions for the manifest of the new image, want 1", m)
	}
}
