package client

import (
	"context"
	"io"

	"github.com/subpod/subpod/pkg/api"
)

// CopyInfo describes a path in a container; links are followed.
func (c *Client) CopyInfo(ctx context.Context, id, path string) (*api.CopyInfoResponse, error) {
	return api.Call[api.CopyInfoResponse](ctx, c.conn, "CopyInfo", &api.CopyRequest{ContainerID: id, Path: path})
}

// CopyOut writes a file or directory of a container to w as a tar stream whose
// first entry is its name.
func (c *Client) CopyOut(ctx context.Context, id, path string, w io.Writer) error {
	return api.Receive(ctx, c.conn, "CopyOut", &api.CopyRequest{ContainerID: id, Path: path}, func(chunk *api.Chunk) error {
		_, err := w.Write(chunk.Data)
		return err
	})
}

// copyChunk is the size of the pieces of CopyIn and LoadStream, in bytes.
const copyChunk = 256 << 10

// CopyIn unpacks a tar stream in the directory dir of a container.
func (c *Client) CopyIn(ctx context.Context, id, dir string, tar io.Reader) error {
	first := true
	_, err := api.Send[api.Empty](ctx, c.conn, "CopyIn", func() (any, error) {
		if first {
			first = false
			return &api.CopyInChunk{ContainerID: id, Path: dir}, nil
		}
		buf := make([]byte, copyChunk)
		n, err := io.ReadFull(tar, buf)
		if err == io.ErrUnexpectedEOF {
			err = nil
		}
		return &api.CopyInChunk{Data: buf[:n]}, err
	})
	return err
}
