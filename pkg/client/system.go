package client

import (
	"context"

	"github.com/subpod/subpod/pkg/control"
)

// Check looks for damaged and orphaned data, and removes it if repair is set.
func (c *Client) Check(ctx context.Context, repair bool) ([]control.Finding, error) {
	resp, err := control.Call[control.CheckResponse](ctx, c.conn, "Check", &control.CheckRequest{Repair: repair})
	if err != nil {
		return nil, err
	}
	return resp.Findings, nil
}
