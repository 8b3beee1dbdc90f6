package cri

import (
	"bufio"
	"context"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/storage"
)

// Load loads images from files: the CRI has no call for it.
func (s *controlService) Load(ctx context.Context, req *api.LoadRequest) (*api.LoadResponse, error) {
	if req.Source == "" {
		return nil, status.Error(codes.InvalidArgument, "the request names no source")
	}
	images, err := s.images.Load(ctx, req.Source)
	if err != nil {
		return nil, err
	}
	resp := &api.LoadResponse{}
	for _, image := range images {
		resp.Images = append(resp.Images, api.LoadedImage{ID: image.ID, Tags: image.RepoTags})
	}
	return resp, nil
}

// Pull is PullImage that tells how it goes.
func (s *controlService) Pull(ctx context.Context, req *api.PullRequest, send func(*api.PullEvent) error) error {
	if req.Ref == "" {
		return status.Error(codes.InvalidArgument, "the request names no image")
	}
	// The store must not wait for a slow client: it leaves the latest state in a
	// box of one.
	var mu sync.Mutex
	var latest api.PullEvent
	news := make(chan struct{}, 1)
	done := make(chan error, 1)
	go func() {
		image, err := s.images.Pull(ctx, storage.PullRequest{Ref: req.Ref, Progress: func(p storage.Progress) {
			mu.Lock()
			latest = api.PullEvent{Downloaded: p.Downloaded, Total: p.Total, Layers: p.Blobs, Done: p.Done}
			mu.Unlock()
			select {
			case news <- struct{}{}:
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
		case <-news:
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

// chunkSize is that of the pieces in which byte streams are sent.
const chunkSize = 256 << 10

// chunks is a writer that sends what it gets.
type chunks func(*api.Chunk) error

// Write implements io.Writer.
func (send chunks) Write(p []byte) (int, error) {
	if err := send(&api.Chunk{Data: p}); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Save sends images as an archive.
func (s *controlService) Save(ctx context.Context, req *api.SaveRequest, send func(*api.Chunk) error) error {
	w := bufio.NewWriterSize(chunks(send), chunkSize)
	if err := s.images.Save(ctx, req.Names, req.Format, w); err != nil {
		return err
	}
	return w.Flush()
}

// Tag gives an image one more name.
func (s *controlService) Tag(ctx context.Context, req *api.TagRequest) (*api.Empty, error) {
	return &api.Empty{}, s.images.Tag(ctx, req.Source, req.Target)
}

// Untag takes a name away from an image.
func (s *controlService) Untag(ctx context.Context, req *api.UntagRequest) (*api.UntagResponse, error) {
	done, err := s.images.Untag(ctx, req.Name, req.Force)
	return &api.UntagResponse{Untagged: done.Names, Deleted: done.Deleted}, err
}

// Login tries and stores credentials.
func (s *controlService) Login(ctx context.Context, req *api.LoginRequest) (*api.LoginResponse, error) {
	file, err := s.images.Login(ctx, req.Registry, req.Username, req.Password)
	return &api.LoginResponse{File: file}, err
}

// Logout removes stored credentials.
func (s *controlService) Logout(ctx context.Context, req *api.LogoutRequest) (*api.Empty, error) {
	return &api.Empty{}, s.images.Logout(ctx, req.Registry, req.All)
}
