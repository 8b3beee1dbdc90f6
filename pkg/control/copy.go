package control

import (
	"context"

	"github.com/subpod/subpod/pkg/api"
)

// CopyInfo returns what a path in a container is.
func (s *service) CopyInfo(ctx context.Context, req *api.CopyRequest) (*api.CopyInfoResponse, error) {
	exists, isDir, err := s.Copier.Info(ctx, req.ContainerID, req.Path)
	return &api.CopyInfoResponse{Exists: exists, IsDir: isDir}, err
}

// CopyOut sends a file or directory of a container as a tar stream.
func (s *service) CopyOut(ctx context.Context, req *api.CopyRequest, send func(*api.Chunk) error) error {
	s.Audit.Copy(ctx, "out", req.ContainerID, req.Path)
	return s.Copier.Out(ctx, req.ContainerID, req.Path, chunks(send))
}

// CopyIn unpacks a tar stream in a directory of a container.
func (s *service) CopyIn(ctx context.Context, receive func() (*api.CopyInChunk, error)) (*api.Empty, error) {
	first, err := receive()
	if err != nil {
		return nil, err
	}
	s.Audit.Copy(ctx, "into", first.ContainerID, first.Path)
	r := readChunks(first, receive, func(c *api.CopyInChunk) []byte { return c.Data })
	return &api.Empty{}, s.Copier.In(ctx, first.ContainerID, first.Path, r)
}

// chunkReader is a reader of a stream of chunks.
type chunkReader struct {
	receive func() ([]byte, error)
	rest    []byte
}

// readChunks returns a reader of a stream whose first message has been received.
func readChunks[C any](first C, receive func() (C, error), data func(C) []byte) *chunkReader {
	return &chunkReader{rest: data(first), receive: func() ([]byte, error) {
		chunk, err := receive()
		if err != nil {
			return nil, err
		}
		return data(chunk), nil
	}}
}

// Read implements io.Reader.
func (r *chunkReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		var err error
		if r.rest, err = r.receive(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}
