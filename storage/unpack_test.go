package storage

import (
	"context"
	"io"
	"sync"
	"testing"
	"time"

	cstorage "go.podman.io/storage"
)

// slowStore takes long to unpack its first layer.
type slowStore struct {
	cstorage.Store
	once *sync.Once
}

func (s slowStore) PutLayer(id, parent string, names []string, mountLabel string, writeable bool, options *cstorage.LayerOptions, diff io.Reader) (*cstorage.Layer, int64, error) {
	s.once.Do(func() { time.Sleep(3 * time.Second) })
	return s.Store.PutLayer(id, parent, names, mountLabel, writeable, options, diff)
}

// TestUnpackingIsProgress: a pull does not end because a layer takes longer to unpack
// than a registry may be silent.
func TestUnpackingIsProgress(t *testing.T) {
	img := sample(t, "slow")
	f := startFake(t, img, nil)
	s := fakeStore(t, f)
	s.layers.opts.PullTimeout = time.Second
	s.layers.cs = slowStore{s.layers.cs, new(sync.Once)}
	if _, err := s.Images.Pull(context.Background(), PullRequest{Ref: f.host + "/app:v1"}); err != nil {
		t.Error(err)
	}
}
