package cri

import (
	"bufio"
	"context"
	"io"

	"github.com/subpod/subpod/pkg/control"
)

// CopyInfo tells what a path in a container is.
func (s *Service) CopyInfo(ctx context.Context, req *control.CopyRequest) (*control.CopyInfoResponse, error) {
	exists, isDir, err := s.Runtime.CopyInfo(ctx, req.ContainerID, req.Path)
	return &control.CopyInfoResponse{Exists: exists, IsDir: isDir}, err
}

// CopyOut sends a file or directory of a container as a tar stream.
func (s *Service) CopyOut(ctx context.Context, req *control.CopyRequest, send func(*control.Chunk) error) error {
	w := bufio.NewWriterSize(chunks(send), chunkSize)
	if err := s.Runtime.CopyOut(ctx, req.ContainerID, req.Path, w); err != nil {
		return err
	}
	return w.Flush()
}

// CopyIn unpacks a tar stream in a directory of a container.
func (s *Service) CopyIn(ctx context.Context, receive func() (*control.CopyInChunk, error)) (*control.Empty, error) {
	first, err := receive()
	if err != nil {
		return nil, err
	}
	r := &chunkReader{receive: receive, rest: first.Data}
	if err := s.Runtime.CopyIn(ctx, first.ContainerID, first.Path, r); err != nil {
		return nil, err
	}
	// The end of an archive is padded; the client wants to be heard out.
	_, err = io.Copy(io.Discard, r)
	return &control.Empty{}, err
}

// chunkReader is a reader of what is received.
type chunkReader struct {
	receive func() (*control.CopyInChunk, error)
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
