package client

import (
	"context"

	"github.com/subpod/subpod/pkg/api"
)

// Check looks for damaged and orphaned data, and removes it if repair is set.
func (c *Client) Check(ctx context.Context, repair bool) ([]api.Finding, error) {
	resp, err := api.Call[api.CheckResponse](ctx, c.conn, "Check", &api.CheckRequest{Repair: repair})
	if err != nil {
		return nil, err
	}
	return resp.Findings, nil
}
