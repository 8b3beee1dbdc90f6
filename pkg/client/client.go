// Package client connects to a running daemon.
package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
)

// maxMessage is the maximum size of a message in bytes; the server has the same.
const maxMessage = 16 << 20

// ErrNoDaemon reports that nothing listens on the socket.
var ErrNoDaemon = errors.New("no daemon is running")

// Client is a connection to the daemon. The errors of its calls are *Error.
type Client struct {
	runtimeapi.RuntimeServiceClient
	runtimeapi.ImageServiceClient
	// Grant is called with the paths of the host that a request names, before it is
	// sent: the daemon's node may not see them. Nil where that is not so.
	Grant func(paths ...string) error

	conn  *grpc.ClientConn
	first *firstConn
}

// connectTimeout is how long a connection waits for the server's first word. Who holds the
// socket accepts it earlier: a service manager that is about to start the daemon, or the
// node while a server is replaced. gRPC itself would give up after 20 s.
const connectTimeout = 2 * time.Minute

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
	unused := &firstConn{conn: first}
	conn, err := grpc.NewClient("passthrough:///"+socket,
		grpc.WithContextDialer(unused.dial),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: connectTimeout}),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithUnaryInterceptor(unaryErrors),
		grpc.WithStreamInterceptor(streamErrors),
		grpc.WithAuthority("localhost"),
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		// With a fixed window gRPC sends no pings to measure the bandwidth.
		grpc.WithInitialWindowSize(api.Window), grpc.WithInitialConnWindowSize(api.Window))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("connect to %s: %w", socket, err), first.Close())
	}
	return &Client{runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn), nil, conn, unused}, nil
}

// firstConn is the connection that Dial has made, until gRPC takes it.
type firstConn struct {
	mu   sync.Mutex
	conn net.Conn
}

func (f *firstConn) take() net.Conn {
	f.mu.Lock()
	defer f.mu.Unlock()
	conn := f.conn
	f.conn = nil
	return conn
}

// dial returns the first connection, and new ones after that.
func (f *firstConn) dial(ctx context.Context, socket string) (net.Conn, error) {
	if conn := f.take(); conn != nil {
		return conn, nil
	}
	var d net.Dialer
	return d.DialContext(ctx, "unix", socket)
}

// Close closes the connection, also one that no call has used.
func (c *Client) Close() error {
	err := c.conn.Close()
	if unused := c.first.take(); unused != nil {
		err = errors.Join(err, unused.Close())
	}
	return err
}

// Load loads images from a file or directory (api.LoadRequest.Source).
func (c *Client) Load(ctx context.Context, source string) ([]api.LoadedImage, error) {
	if c.Grant != nil {
		_, path, _ := api.SplitSource(source)
		if err := c.Grant(path); err != nil {
			return nil, err
		}
	}
	resp, err := api.Call[api.LoadResponse](ctx, c.conn, "Load", &api.LoadRequest{Source: source})
	if err != nil {
		return nil, err
	}
	return resp.Images, nil
}

// LoadStream loads images from an archive; kind and ref as in api.LoadChunk.
func (c *Client) LoadStream(ctx context.Context, kind, ref string, archive io.Reader) ([]api.LoadedImage, error) {
	first := true
	resp, err := api.Send[api.LoadResponse](ctx, c.conn, "LoadStream", func() (any, error) {
		if first {
			first = false
			return &api.LoadChunk{Kind: kind, Ref: ref}, nil
		}
		buf := make([]byte, copyChunk)
		n, err := io.ReadFull(archive, buf)
		if err == io.ErrUnexpectedEOF {
			err = nil
		}
		return &api.LoadChunk{Data: buf[:n]}, err
	})
	if err != nil {
		return nil, err
	}
	return resp.Images, nil
}

// Pull pulls an image and returns its ID; progress may be nil.
func (c *Client) Pull(ctx context.Context, req *api.PullRequest, progress func(*api.PullEvent)) (id string, err error) {
	err = api.Receive(ctx, c.conn, "Pull", req, func(e *api.PullEvent) error {
		id = e.ID
		if progress != nil {
			progress(e)
		}
		return nil
	})
	return id, err
}

// Save calls write with the pieces of an archive of images.
func (c *Client) Save(ctx context.Context, req *api.SaveRequest, write func([]byte) error) error {
	return api.Receive(ctx, c.conn, "Save", req, func(chunk *api.Chunk) error { return write(chunk.Data) })
}

// Push copies an image to a registry and returns the name that it has there.
func (c *Client) Push(ctx context.Context, source, target string) (string, error) {
	resp, err := api.Call[api.PushResponse](ctx, c.conn, "Push", &api.PushRequest{Source: source, Target: target})
	if err != nil {
		return "", err
	}
	return resp.Name, nil
}

// Tag adds a name to an image.
func (c *Client) Tag(ctx context.Context, source, target string) error {
	_, err := api.Call[api.Empty](ctx, c.conn, "Tag", &api.TagRequest{Source: source, Target: target})
	return err
}

// Untag removes a name from an image, and the image with its last name.
func (c *Client) Untag(ctx context.Context, name string, force bool) (*api.UntagResponse, error) {
	return api.Call[api.UntagResponse](ctx, c.conn, "Untag", &api.UntagRequest{Name: name, Force: force})
}

// Login verifies and stores credentials, and returns the file that contains them.
func (c *Client) Login(ctx context.Context, req *api.LoginRequest) (file string, err error) {
	resp, err := api.Call[api.LoginResponse](ctx, c.conn, "Login", req)
	if err != nil {
		return "", err
	}
	return resp.File, nil
}

// Logout removes stored credentials.
func (c *Client) Logout(ctx context.Context, req *api.LogoutRequest) error {
	_, err := api.Call[api.Empty](ctx, c.conn, "Logout", req)
	return err
}

// Wait waits until a container has exited and returns its exit status: that of the run
// with the number attempt, of the present one for nil.
func (c *Client) Wait(ctx context.Context, id string, attempt *uint32) (*api.WaitResponse, error) {
	return api.Call[api.WaitResponse](ctx, c.conn, "Wait", &api.WaitRequest{ContainerID: id, Attempt: attempt})
}

// Signal sends a signal to a container's process.
func (c *Client) Signal(ctx context.Context, id string, signal int) error {
	_, err := api.Call[api.Empty](ctx, c.conn, "Signal", &api.SignalRequest{ContainerID: id, Signal: signal})
	return err
}

// Top lists a container's processes.
func (c *Client) Top(ctx context.Context, id string) ([]api.Process, error) {
	resp, err := api.Call[api.TopResponse](ctx, c.conn, "Top", &api.TopRequest{ContainerID: id})
	if err != nil {
		return nil, err
	}
	return resp.Processes, nil
}

// Session runs a session until it ends.
func (c *Client) Session(ctx context.Context, req api.SessionRequest, s api.Streams) (*api.SessionExit, error) {
	return api.Session(ctx, c.conn, req, s)
}
