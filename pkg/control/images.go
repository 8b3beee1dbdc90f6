package control

import (
	"bufio"
	"context"
	"sync"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/storage"
)

// Load loads images from files.
func (s *service) Load(ctx context.Context, req *api.LoadRequest) (*api.LoadResponse, error) {
	if req.Source == "" {
		return nil, invalid("the request names no source")
	}
	source, release, err := s.localSource(req.Source)
	if err != nil {
		return nil, err
	}
	defer release()
	return loaded(s.Images.Load(ctx, source))
}

// LoadStream loads images from an archive that the client sends.
func (s *service) LoadStream(ctx context.Context, receive func() (*api.LoadChunk, error)) (*api.LoadResponse, error) {
	first, err := receive()
	if err != nil {
		return nil, err
	}
	r := readChunks(first, receive, func(c *api.LoadChunk) []byte { return c.Data })
	return loaded(s.Images.LoadFrom(ctx, r, first.Kind, first.Ref))
}

func loaded(images []storage.Image, err error) (*api.LoadResponse, error) {
	if err != nil {
		return nil, err
	}
	resp := &api.LoadResponse{}
	for _, image := range images {
		resp.Images = append(resp.Images, api.LoadedImage{ID: image.ID, Tags: image.RepoTags})
	}
	return resp, nil
}

// Pull is PullImage that reports its progress.
func (s *service) Pull(ctx context.Context, req *api.PullRequest, send func(*api.PullEvent) error) error {
	if req.Ref == "" {
		return invalid("the request names no image")
	}
	platform, err := storage.ParsePlatform(req.Platform)
	if err != nil {
		return err
	}
	// The download does not wait for a slow client: only the latest update is kept, and
	// the client skips those in between.
	var mu sync.Mutex
	var latest api.PullEvent
	updated := make(chan struct{}, 1)
	done := make(chan error, 1)
	go func() {
		image, err := s.Images.Pull(ctx, storage.PullRequest{Ref: req.Ref, Platform: platform, Progress: func(p storage.Progress) {
			mu.Lock()
			latest = api.PullEvent{Downloaded: p.Downloaded, Total: p.Total, Layers: p.Blobs, Done: p.Done}
			mu.Unlock()
			select {
			case updated <- struct{}{}:
			default:
			}
		}})
		mu.Lock()
		latest.ID = image.ID
		mu.Unlock()
		done <- err
	}()
	read := func() *api.PullEvent {
		mu.Lock()
		defer mu.Unlock()
		e := latest
		return &e
	}
	for {
		select {
		case <-updated:
			if err := send(read()); err != nil {
				return err
			}
		case err := <-done:
			if err != nil {
				return err
			}
			return send(read())
		}
	}
}

// chunkSize is the size of the messages of a byte stream.
const chunkSize = 256 << 10

// chunks is a writer that sends each write as one message.
type chunks func(*api.Chunk) error

// Write implements io.Writer.
func (send chunks) Write(p []byte) (int, error) {
	if err := send(&api.Chunk{Data: p}); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Save sends images as an archive.
func (s *service) Save(ctx context.Context, req *api.SaveRequest, send func(*api.Chunk) error) error {
	w := bufio.NewWriterSize(chunks(send), chunkSize)
	if err := s.Images.Save(ctx, req.Names, req.Format, w); err != nil {
		return err
	}
	return w.Flush()
}

// Push copies an image to a registry.
func (s *service) Push(ctx context.Context, req *api.PushRequest) (*api.PushResponse, error) {
	name, err := s.Images.Push(ctx, req.Source, req.Target)
	return &api.PushResponse{Name: name}, err
}

// Tag adds a name to an image.
func (s *service) Tag(ctx context.Context, req *api.TagRequest) (*api.Empty, error) {
	return &api.Empty{}, s.Images.Tag(ctx, req.Source, req.Target)
}

// Untag removes a name from an image.
func (s *service) Untag(ctx context.Context, req *api.UntagRequest) (*api.UntagResponse, error) {
	var done storage.Untagged
	err := onceLeft(ctx, s.State, func() (err error) {
		done, err = s.Images.Untag(ctx, req.Name, req.Force)
		return err
	})
	return &api.UntagResponse{Untagged: done.Names, Deleted: done.Deleted}, err
}

// Login checks credentials with the registry and stores them.
func (s *service) Login(ctx context.Context, req *api.LoginRequest) (*api.LoginResponse, error) {
	file, err := s.Images.Login(ctx, req.Registry, req.Username, req.Password)
	return &api.LoginResponse{File: file}, err
}

// Logout removes stored credentials.
func (s *service) Logout(ctx context.Context, req *api.LogoutRequest) (*api.Empty, error) {
	return &api.Empty{}, s.Images.Logout(ctx, req.Registry, req.All)
}
