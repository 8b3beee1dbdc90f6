// Package client connects to a running daemon.
package client

import (
	"context"
	"fmt"
	"net"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/control"
)

// maxMessage is the size of the largest message, in bytes, as the server has it.
const maxMessage = 16 << 20

// Client speaks to the daemon behind a unix socket.
type Client struct {
	runtimeapi.RuntimeServiceClient
	runtimeapi.ImageServiceClient
	conn *grpc.ClientConn
}

// Dial makes a client for the socket. It fails at once when nothing listens
// there.
func Dial(socket string) (*Client, error) {
	probe, err := net.Dial("unix", socket)
	if err != nil {
		hint := "start it with `subpod daemon`"
		if os.IsPermission(err) {
			hint = "only the user that runs the daemon may use it"
		}
		return nil, fmt.Errorf("no daemon answers on %s: %w (%s)", socket, err, hint)
	}
	probe.Close()
	conn, err := grpc.NewClient("unix://"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)))
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", socket, err)
	}
	return &Client{runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn), conn}, nil
}

// Load loads images from a file or directory (control.LoadRequest.Source).
func (c *Client) Load(ctx context.Context, source string) ([]control.LoadedImage, error) {
	resp, err := control.Load(ctx, c.conn, &control.LoadRequest{Source: source})
	if err != nil {
		return nil, err
	}
	return resp.Images, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }
