package nri

import (
	"context"

	"github.com/containerd/ttrpc"
)

// patience ends the wait for a plugin with the request, also while the request is sent: the
// library writes to the plugin's socket without a deadline, and one that does not read,
// stopped by SIGSTOP for example, would keep it, and all others, in that write. The write
// itself ends when the library disconnects the plugin.
func patience(ctx context.Context, req *ttrpc.Request, resp *ttrpc.Response, _ *ttrpc.UnaryClientInfo, call ttrpc.Invoker) error {
	own, done := &ttrpc.Response{}, make(chan error, 1)
	go func() { done <- call(ctx, req, own) }()
	select {
	case err := <-done:
		resp.Status, resp.Payload = own.Status, own.Payload
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
