package client

import (
	"context"
	"io"

	"github.com/subpod/subpod/pkg/api"
)

// CreateVolume makes a volume.
func CreateVolume(ctx context.Context, c *Client, name string, labels map[string]string) (*api.Volume, error) {
	return api.Call[api.Volume](ctx, c.conn, "CreateVolume", &api.VolumeRequest{Name: name, Labels: labels})
}

// RemoveVolume removes a volume that no container has. With force one that is not there
// is no error.
func RemoveVolume(ctx context.Context, c *Client, name string, force bool) (removed bool, err error) {
	resp, err := api.Call[api.VolumeRemoved](ctx, c.conn, "RemoveVolume", &api.VolumeRequest{Name: name, Force: force})
	if err != nil {
		return false, err
	}
	return resp.Removed, nil
}

// Volumes lists all volumes.
func Volumes(ctx context.Context, c *Client) ([]api.Volume, error) {
	resp, err := api.Call[api.VolumesResponse](ctx, c.conn, "Volumes", &api.Empty{})
	if err != nil {
		return nil, err
	}
	return resp.Volumes, nil
}

// ExportVolume calls write with the pieces of a tar stream of a volume's content.
func ExportVolume(ctx context.Context, c *Client, name string, write func([]byte) error) error {
	return api.Receive(ctx, c.conn, "ExportVolume", &api.VolumeRequest{Name: name}, func(chunk *api.Chunk) error { return write(chunk.Data) })
}

// ImportVolume adds the content of a tar stream to a volume.
func ImportVolume(ctx context.Context, c *Client, name string, archive io.Reader) error {
	first := true
	_, err := api.Send[api.Empty](ctx, c.conn, "ImportVolume", func() (any, error) {
		if first {
			first = false
			return &api.ImportChunk{Name: name}, nil
		}
		buf := make([]byte, copyChunk)
		n, err := io.ReadFull(archive, buf)
		if err == io.ErrUnexpectedEOF {
			err = nil
		}
		return &api.ImportChunk{Data: buf[:n]}, err
	})
	return err
}
