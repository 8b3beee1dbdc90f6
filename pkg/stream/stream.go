// Package stream serves exec, attach and port-forward sessions over HTTP: the
// streaming half of CRI. A gRPC call registers a request and gets a URL with a
// token; whoever opens that URL, once and soon, gets the session.
//
// The protocols are those of k8s.io/cri-streaming: SPDY/3.1 and WebSocket with
// the subprotocols (v1 to v4).channel.k8s.io and portforward.k8s.io. Two that
// clients ask for first are added here: v5.channel.k8s.io (a WebSocket session
// in which stdin can end) and SPDY/3.1+portforward.k8s.io (SPDY in a WebSocket).
package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/errclass"
	"github.com/subpod/subpod/pkg/stdio"
)

var (
	// ErrInvalid says that a request contradicts itself or lacks a field.
	ErrInvalid = errclass.New(errdefs.ErrInvalidArgument, "invalid streaming request")
	// ErrBusy says that too many URLs wait to be opened.
	ErrBusy = errclass.New(errdefs.ErrResourceExhausted, "too many streaming requests are waiting to be opened")
	// ErrTooMany says that too many sessions are open.
	ErrTooMany = errors.New("too many streaming sessions are open")
	// ErrClosed says that the server has been closed.
	ErrClosed = errclass.New(errdefs.ErrUnavailable, "the streaming server is closed")
)

// Backend does what sessions ask for. The context of each call ends when the
// client has gone, the session was idle for too long, or the server closes; a
// call must return soon after that.
//
// Streams that the request did not ask for are nil. Resize is nil without a TTY,
// and is closed when no more will come.
type Backend interface {
	// Exec runs cmd in a container and returns its exit code, or an error when
	// it could not be run.
	Exec(ctx context.Context, containerID string, cmd []string, s stdio.Streams) (exit int32, err error)
	// Attach connects to the container's main process, until that ends.
	Attach(ctx context.Context, containerID string, s stdio.Streams) error
	// PortForward connects stream to a port inside the pod sandbox, until both
	// directions have ended; see netns.Forward. Close on the stream ends the direction
	// towards the client.
	PortForward(ctx context.Context, podID string, port int32, stream io.ReadWriteCloser) error
}

// Options of a Server. Zero durations mean the defaults given.
type Options struct {
	// BaseURL is where clients reach the listeners, such as
	// "http://127.0.0.1:41213". Its path must be empty.
	BaseURL string
	// IdleTimeout ends a session in which nothing moved, also one whose command
	// has ended but whose client does not take the output; 4 hours.
	IdleTimeout time.Duration
	// CloseTimeout is how long a client that has everything may take to close
	// its side of the connection; 30 seconds.
	CloseTimeout time.Duration
	// CreationTimeout is how long a client may take to open the streams of a
	// session; 30 seconds.
	CreationTimeout time.Duration
	// TokenTTL is how long a URL may wait to be opened; one minute.
	TokenTTL time.Duration
	// MaxSessions is how many sessions may be open; 1000. Twice as many
	// connections may be, with those that have not asked for a session yet.
	MaxSessions int
	Log         *slog.Logger
}

// New makes a server, which serves once Serve is called.
func New(backend Backend, o Options) (*Server, error) {
	base, err := url.Parse(o.BaseURL)
	if err != nil {
		return nil, fmt.Errorf("streaming base URL: %w", err)
	}
	if base.Scheme != "http" || base.Host == "" || (base.Path != "" && base.Path != "/") {
		return nil, fmt.Errorf("streaming base URL %q is not of the form http://HOST:PORT", o.BaseURL)
	}
	setDefault(&o.IdleTimeout, 4*time.Hour)
	setDefault(&o.CloseTimeout, 30*time.Second)
	setDefault(&o.CreationTimeout, 30*time.Second)
	setDefault(&o.TokenTTL, time.Minute)
	if o.MaxSessions <= 0 {
		o.MaxSessions = 1000
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	s := &Server{
		backend: backend,
		options: o,
		base:    base,
		tokens:  tokens{ttl: o.TokenTTL, waiting: map[string]pending{}},
		conns:   map[*clientConn]struct{}{},
	}
	s.http = s.newHTTPServer()
	return s, nil
}

func setDefault(d *time.Duration, v time.Duration) {
	if *d <= 0 {
		*d = v
	}
}

// Exec registers a request and returns the URL that opens it. ErrInvalid,
// ErrBusy or ErrClosed.
func (s *Server) Exec(req *runtimeapi.ExecRequest) (string, error) {
	if len(req.GetCmd()) == 0 {
		return "", fmt.Errorf("%w: no command", ErrInvalid)
	}
	if err := checkStreams(req.ContainerId, req.Tty, req.Stdin, req.Stdout, req.Stderr); err != nil {
		return "", err
	}
	return s.register(kindExec, req)
}

// Attach registers a request and returns the URL that opens it. ErrInvalid,
// ErrBusy or ErrClosed.
func (s *Server) Attach(req *runtimeapi.AttachRequest) (string, error) {
	if err := checkStreams(req.GetContainerId(), req.GetTty(), req.GetStdin(), req.GetStdout(), req.GetStderr()); err != nil {
		return "", err
	}
	return s.register(kindAttach, req)
}

// PortForward registers a request and returns the URL that opens it. The ports
// of the request are used by WebSocket clients of the old kind only; all others
// name a port with each connection. ErrInvalid, ErrBusy or ErrClosed.
func (s *Server) PortForward(req *runtimeapi.PortForwardRequest) (string, error) {
	if req.GetPodSandboxId() == "" {
		return "", fmt.Errorf("%w: no pod_sandbox_id", ErrInvalid)
	}
	for _, p := range req.GetPort() {
		if p < 1 || p > 65535 {
			return "", fmt.Errorf("%w: port %d is not between 1 and 65535", ErrInvalid, p)
		}
	}
	return s.register(kindPortForward, req)
}

// checkStreams holds what api.proto says of ExecRequest and AttachRequest: one
// stream at least, and no stderr with a TTY, which has one output only.
func checkStreams(id string, tty, stdin, stdout, stderr bool) error {
	switch {
	case id == "":
		return fmt.Errorf("%w: no container_id", ErrInvalid)
	case tty && stderr:
		return fmt.Errorf("%w: tty and stderr cannot both be true", ErrInvalid)
	case !stdin && !stdout && !stderr:
		return fmt.Errorf("%w: one of stdin, stdout and stderr must be true", ErrInvalid)
	}
	return nil
}

func (s *Server) register(kind string, req proto.Message) (string, error) {
	if s.closed() {
		return "", ErrClosed
	}
	token, err := s.tokens.add(kind, req)
	if err != nil {
		return "", err
	}
	return s.base.JoinPath(kind, token).String(), nil
}
