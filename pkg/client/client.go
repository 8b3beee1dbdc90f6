// Package client connects to a running daemon.
package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/control"
)

// maxMessage is the maximum size of a message in bytes; the server has the same.
const maxMessage = 16 << 20

// ErrNoDaemon reports that nothing listens on the socket.
var ErrNoDaemon = errors.New("no daemon is running")

// Client is a connection to the daemon. The errors of its calls are *Error.
type Client struct {
	runtimeapi.RuntimeServiceClient
	runtimeapi.ImageServiceClient
	conn *grpc.ClientConn
}

// Dial connects to the daemon on a unix socket. It fails at once if nothing listens
// there: ErrNoDaemon.
func Dial(socket string) (*Client, error) {
	first, err := net.Dial("unix", socket)
	if errors.Is(err, os.ErrPermission) {
		return nil, fmt.Errorf("connect to the daemon: %w; only the user who runs the daemon can connect to it", err)
	}
	if err != nil {
		return nil, fmt.Errorf("%w on %s: %w; start it with \"subpod daemon\"", ErrNoDaemon, socket, err)
	}
	conn, err := grpc.NewClient("passthrough:///"+socket,
		grpc.WithContextDialer(dialer(first)),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithUnaryInterceptor(unaryErrors),
		grpc.WithStreamInterceptor(streamErrors),
		grpc.WithAuthority("localhost"),
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		// With a fixed window gRPC sends no pings to measure the bandwidth.
		grpc.WithInitialWindowSize(control.Window), grpc.WithInitialConnWindowSize(control.Window))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("connect to %s: %w", socket, err), first.Close())
	}
	return &Client{runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn), conn}, nil
}

// dialer returns first, and new connections after that.
func dialer(first net.Conn) func(context.Context, string) (net.Conn, error) {
	var mu sync.Mutex
	return func(ctx context.Context, socket string) (net.Conn, error) {
		mu.Lock()
		conn := first
		first = nil
		mu.Unlock()
		if conn != nil {
			return conn, nil
		}
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}
}

// Close closes the connection.
func (c *Client) Close() error { return c.conn.Close() }

// Load loads images from a file or directory (control.LoadRequest.Source).
func (c *Client) Load(ctx context.Context, source string) ([]control.LoadedImage, error) {
	resp, err := control.Call[control.LoadResponse](ctx, c.conn, "Load", &control.LoadRequest{Source: source})
	if err != nil {
		return nil, err
	}
	return resp.Images, nil
}

// Pull pulls an image and returns its ID; progress may be nil.
func (c *Client) Pull(ctx context.Context, ref string, progress func(*control.PullEvent)) (id string, err error) {
	err = control.Receive(ctx, c.conn, "Pull", &control.PullRequest{Ref: ref}, func(e *control.PullEvent) error {
		id = e.ID
		if progress != nil {
			progress(e)
		}
		return nil
	})
	return id, err
}

// Save calls write with the pieces of an archive of images.
func (c *Client) Save(ctx context.Context, req *control.SaveRequest, write func([]byte) error) error {
	return control.Receive(ctx, c.conn, "Save", req, func(chunk *control.Chunk) error { return write(chunk.Data) })
}

// Tag adds a name to an image.
func (c *Client) Tag(ctx context.Context, source, target string) error {
	_, err := control.Call[control.Empty](ctx, c.conn, "Tag", &control.TagRequest{Source: source, Target: target})
	return err
}

// Untag removes a name from an image, and the image with its last name.
func (c *Client) Untag(ctx context.Context, name string, force bool) (*control.UntagResponse, error) {
	return control.Call[control.UntagResponse](ctx, c.conn, "Untag", &control.UntagRequest{Name: name, Force: force})
}

// Login verifies and stores credentials, and returns the file that contains them.
func (c *Client) Login(ctx context.Context, req *control.LoginRequest) (file string, err error) {
	resp, err := control.Call[control.LoginResponse](ctx, c.conn, "Login", req)
	if err != nil {
		return "", err
	}
	return resp.File, nil
}

// Logout removes stored credentials.
func (c *Client) Logout(ctx context.Context, req *control.LogoutRequest) error {
	_, err := control.Call[control.Empty](ctx, c.conn, "Logout", req)
	return err
}

// Wait waits until a container has exited and returns its exit status.
func (c *Client) Wait(ctx context.Context, id string) (*control.WaitResponse, error) {
	return control.Call[control.WaitResponse](ctx, c.conn, "Wait", &control.WaitRequest{ContainerID: id})
}

// Signal sends a signal to a container's process.
func (c *Client) Signal(ctx context.Context, id string, signal int) error {
	_, err := control.Call[control.Empty](ctx, c.conn, "Signal", &control.SignalRequest{ContainerID: id, Signal: signal})
	return err
}

// Top lists a container's processes.
func (c *Client) Top(ctx context.Context, id string) ([]control.Process, error) {
	resp, err := control.Call[control.TopResponse](ctx, c.conn, "Top", &control.TopRequest{ContainerID: id})
	if err != nil {
		return nil, err
	}
	return resp.Processes, nil
}

// Session runs a session until it ends.
func (c *Client) Session(ctx context.Context, req control.SessionRequest, s control.Streams) (*control.SessionExit, error) {
	return control.Session(ctx, c.conn, req, s)
}
