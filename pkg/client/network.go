package client

import (
	"context"

	"google.golang.org/grpc"

	"github.com/subpod/subpod/pkg/api"
)

// Networks are the daemon's networks.
type Networks struct{ conn grpc.ClientConnInterface }

// Networks returns the daemon's networks.
func (c *Client) Networks() Networks { return Networks{c.conn} }

// Create makes a network and returns it as it is.
func (n Networks) Create(ctx context.Context, network api.Network) (*api.Network, error) {
	return api.Call[api.Network](ctx, n.conn, "NetworkCreate", &api.NetworkCreateRequest{Network: network})
}

// Remove removes a network that no pod is connected to.
func (n Networks) Remove(ctx context.Context, name string) error {
	_, err := api.Call[api.Empty](ctx, n.conn, "NetworkRemove", &api.NetworkRequest{Name: name})
	return err
}

// List lists all networks, the default one first.
func (n Networks) List(ctx context.Context) ([]api.Network, error) {
	resp, err := api.Call[api.NetworksResponse](ctx, n.conn, "Networks", &api.Empty{})
	if err != nil {
		return nil, err
	}
	return resp.Networks, nil
}
