package cri

import (
	"context"

	"github.com/subpod/subpod/pkg/api"
)

// CopyInfo tells what a path in a container is.
func (s *controlService) CopyInfo(ctx context.Context, req *api.CopyRequest) (*api.CopyInfoResponse, error) {
	exists, isDir, err := s.copier.Info(ctx, req.ContainerID, req.Path)
	return &api.CopyInfoResponse{Exists: exists, IsDir: isDir}, err
}

// CopyOut sends a file or directory of a container as a tar stream.
func (s *controlService) CopyOut(ctx context.Context, req *api.CopyRequest, send func(*api.Chunk) error) error {
	return s.copier.Out(ctx, req.ContainerID, req.Path, chunks(send))
}

// CopyIn unpacks a tar stream in a directory of a container.
func (s *controlService) CopyIn(ctx context.Context, receive func() (*api.CopyInChunk, error)) (*api.Empty, error) {
	first, err := receive()
	if err != nil {
		return nil, err
	}
	r := &chunkReader{receive: receive, rest: first.Data}
	return &api.Empty{}, s.copier.In(ctx, first.ContainerID, first.Path, r)
}

// chunkReader is a reader of what is received.
type chunkReader struct {
	receive func() (*api.CopyInChunk, error)
	rest    []byte
}

// Read implements io.Reader.
func (r *chunkReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		chunk, err := r.receive()
		if err != nil {
			return 0, err
		}
		r.rest = chunk.Data
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}
