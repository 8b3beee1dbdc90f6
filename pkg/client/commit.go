package client

import (
	"context"

	"github.com/subpod/subpod/pkg/api"
)

// Changes lists what a container has changed of its image.
func Changes(ctx context.Context, c *Client, id string) ([]api.Change, error) {
	resp, err := api.Call[api.ChangesResponse](ctx, c.conn, "Changes", &api.ChangesRequest{ContainerID: id})
	if err != nil {
		return nil, err
	}
	return resp.Changes, nil
}

// Commit makes an image of a container and returns its ID.
func Commit(ctx context.Context, c *Client, req *api.CommitRequest) (id string, err error) {
	resp, err := api.Call[api.CommitResponse](ctx, c.conn, "Commit", req)
	if err != nil {
		return "", err
	}
	return resp.ID, nil
}
