package client

import (
	"context"

	"github.com/subpod/subpod/pkg/api"
)

// Traces hands traces of requests to got, and with req.Follow does so until ctx ends.
func Traces(ctx context.Context, c *Client, req *api.TraceRequest, got func(*api.Trace) error) error {
	return api.Receive(ctx, c.conn, "Traces", req, got)
}

// LogLevel sets the level of the server's log, unless it is "", and returns it.
func LogLevel(ctx context.Context, c *Client, level string) (string, error) {
	resp, err := api.Call[api.LogLevelResponse](ctx, c.conn, "LogLevel", &api.LogLevelRequest{Level: level})
	if err != nil {
		return "", err
	}
	return resp.Level, nil
}
