package storage

import (
	"context"
	"net/http"
	"path/filepath"
	"slices"
	"testing"
)

// TestContentWritesNothingOfTheServer: what a content process may change is not what the
// server opens by name afterwards. A link in the place of a blob that it downloads would
// be a way out.
func TestContentWritesNothingOfTheServer(t *testing.T) {
	f := startFake(t, sample(t, "writable"), func(http.ResponseWriter, *http.Request) bool { return false })
	s := fakeStore(t, f)
	tr := &transfer{im: s.Images, ctx: context.Background(), tmp: filepath.Join(s.layers.dirs.tmp(), "pull-1")}
	layers, plain, err := tr.writable()
	if err != nil {
		t.Fatal(err)
	}
	paths := slices.Concat(layers, plain)
	for _, dir := range []string{"overlay-images", "overlay-layers"} { // the library reads these by name
		if slices.Contains(layers, filepath.Join(s.layers.opts.Root, dir)) {
			t.Errorf("a content process may make FIFOs in %s", dir)
		}
	}
	for _, of := range []string{s.layers.dirs.blobs(), s.layers.dirs.unsynced(), s.layers.dirs.rootfs(""), s.layers.dirs.imageMount(""),
		s.layers.reserve.path, filepath.Join(s.layers.dirs.tmp(), "pull-2")} {
		for at := of; at != "/"; at = filepath.Dir(at) {
			if slices.Contains(paths, at) {
				t.Errorf("%s is writable, by %s", of, at)
			}
		}
	}
	if _, err := s.Images.Pull(context.Background(), PullRequest{Ref: f.host + "/app:v1"}); err != nil {
		t.Error(err)
	}
}
