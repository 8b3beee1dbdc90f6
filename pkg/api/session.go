package api

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/subpod/subpod/pkg/stdio"
)

// A session joins a client's streams to those of a container (exec, attach) or
// to a port of a pod. Both ends send frames: one byte that names the channel,
// then data. The client's first frame is the SessionRequest, an end frame the end of
// stdin. The server's last one is the SessionExit; an error is the gRPC status.
const (
	channelRequest = 'r' // SessionRequest, JSON
	channelMade    = 'm' // Made, JSON
	channelReady   = 'y' // empty: the streams are joined
	channelInput   = '0'
	channelOutput  = '1'
	channelErrors  = '2'
	channelResize  = 'w' // stdio.TerminalSize, JSON
	channelEnd     = 'e' // empty: the end of the input, or of the output (port-forward)
	channelExit    = 'x' // SessionExit, JSON
)

// Kinds of sessions.
const (
	SessionRun         = "run" // a new container in a new pod sandbox
	SessionExec        = "exec"
	SessionAttach      = "attach"
	SessionPortForward = "port-forward"
)

// SessionRequest opens a session.
type SessionRequest struct {
	Kind        string   `json:"kind"`
	ContainerID string   `json:"containerId,omitempty"`
	Command     []string `json:"command,omitempty"`
	TTY         bool     `json:"tty,omitempty"`
	Stdin       bool     `json:"stdin,omitempty"`
	Output      bool     `json:"output,omitempty"` // stdout and stderr are wanted
	// Start starts a created container once the streams are joined, so that
	// nothing is missed; Wait keeps an attach open until the container has exited.
	Start bool `json:"start,omitempty"`
	Wait  bool `json:"wait,omitempty"`
	// Run is what SessionRun creates. Where the container cannot be started, it is
	// removed again.
	Run *RunRequest `json:"run,omitempty"`

	PodID string `json:"podId,omitempty"`
	Port  int32  `json:"port,omitempty"`
	// Exec changes the process of SessionExec.
	Exec *ExecOptions `json:"exec,omitempty"`
}

// ExecOptions change the process of an exec from what the container's own has.
type ExecOptions struct {
	// Env are variables as NAME=VALUE.
	Env []string `json:"env,omitempty"`
	// User is UID or user name, optionally with :GID or :group.
	User string `json:"user,omitempty"`
	// Dir is the working directory.
	Dir string `json:"dir,omitempty"`
	// Privileged gives the process all capabilities of the node.
	Privileged bool `json:"privileged,omitempty"`
	// Detach ends the session once the process runs; its output goes nowhere.
	Detach bool `json:"detach,omitempty"`
}

// RunRequest is a pod sandbox and its container. Both are marshalled CRI messages.
type RunRequest struct {
	Pod       []byte `json:"pod"`       // PodSandboxConfig
	Container []byte `json:"container"` // ContainerConfig
	Handler   string `json:"handler,omitempty"`
	// PodID is a pod sandbox to create the container in; none is made then.
	PodID string `json:"podId,omitempty"`
	// Detach ends the session once the container is started.
	Detach bool `json:"detach,omitempty"`
	// Create ends the session before the container is started.
	Create bool `json:"create,omitempty"`
	// Restart is the restart policy (workload.ParsePolicy), empty for none.
	Restart string `json:"restart,omitempty"`
}

// Made names what SessionRun has created.
type Made struct {
	PodID       string `json:"podId"`
	ContainerID string `json:"containerId"`
}

// SessionExit is how a command, or a container that was waited for, ended.
type SessionExit struct {
	Code   int32  `json:"code"`
	Reason string `json:"reason,omitempty"`
}

// SessionStreams are a server's view of a session.
type SessionStreams struct {
	Request SessionRequest
	Input   io.Reader
	// Output and Errors send; so do Made and Ready, once.
	Output, Errors io.Writer
	Sizes          <-chan stdio.TerminalSize
	Made           func(Made)
	Ready          func()
	// EndOutput tells the client that Output has ended.
	EndOutput func() error
}

// messageStream is what both ends of a gRPC stream have in common.
type messageStream interface {
	SendMsg(m any) error
	RecvMsg(m any) error
}

// frames sends and receives frames. Sending is safe for concurrent use.
type frames struct {
	stream messageStream

	mu     sync.Mutex // held while a frame is sent: a gRPC stream has one sender
	closed bool
}

// send sends a frame; io.ErrClosedPipe once the frames are closed.
func (f *frames) send(channel byte, data []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return io.ErrClosedPipe
	}
	return f.transmit(channel, data)
}

// close sends the exit as the last frame, unless err is set, and returns what the handler
// must. It waits for a frame that is on its way: until the client reads, or is gone.
func (f *frames) close(exit *SessionExit, err error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	if err != nil {
		return err
	}
	data, err := json.Marshal(exit)
	if err != nil {
		return err
	}
	return f.transmit(channelExit, data)
}

// transmit is send with mu held.
func (f *frames) transmit(channel byte, data []byte) error {
	return f.stream.SendMsg(wrapperspb.Bytes(append([]byte{channel}, data...)))
}

func (f *frames) sendJSON(channel byte, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return f.send(channel, data)
}

func (f *frames) receive() (channel byte, data []byte, err error) {
	var m wrapperspb.BytesValue
	if err := f.stream.RecvMsg(&m); err != nil {
		return 0, nil, err
	}
	if len(m.Value) == 0 {
		return 0, nil, fmt.Errorf("a frame without a channel")
	}
	return m.Value[0], m.Value[1:], nil
}

// writer sends what is written to it, in pieces.
type writer struct {
	frames  *frames
	channel byte
}

const maxFrame = 64 << 10

// Write implements io.Writer.
func (w writer) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		piece := p[:min(len(p), maxFrame)]
		if err := w.frames.send(w.channel, piece); err != nil {
			return n, err
		}
		n += len(piece)
		p = p[len(piece):]
	}
	return n, nil
}

// serveSession reads a session's frames for the server's call.
func serveSession(call func(context.Context, *SessionStreams) (*SessionExit, error)) grpc.StreamHandler {
	return func(_ any, stream grpc.ServerStream) error {
		f := &frames{stream: stream}
		s := &SessionStreams{Output: writer{f, channelOutput}, Errors: writer{f, channelErrors}}
		channel, data, err := f.receive()
		if err != nil {
			return err
		}
		if channel != channelRequest {
			return fmt.Errorf("the first frame of a session is not a request")
		}
		if err := json.Unmarshal(data, &s.Request); err != nil {
			return fmt.Errorf("decode the request of a session: %w", err)
		}
		input, feed := io.Pipe()
		sizes := make(chan stdio.TerminalSize, 1)
		s.Input, s.Sizes = input, sizes
		s.Made = func(m Made) { _ = f.sendJSON(channelMade, m) }
		s.Ready = sync.OnceFunc(func() { _ = f.send(channelReady, nil) })
		s.EndOutput = func() error { return f.send(channelEnd, nil) }
		ctx, cancel := context.WithCancel(stream.Context())
		defer cancel()
		go receiveInput(f, feed, sizes)
		exit, err := call(ctx, s)
		_ = input.CloseWithError(io.ErrClosedPipe)
		// A copier of output may outlive the call, but gRPC does not allow it to send once
		// the handler has returned.
		return f.close(exit, err)
	}
}

// receiveInput passes a client's frames on until the client closes its side.
func receiveInput(f *frames, input *io.PipeWriter, sizes chan stdio.TerminalSize) {
	closed := false
	for {
		channel, data, err := f.receive()
		if err != nil {
			_ = input.CloseWithError(err)
			return
		}
		switch channel {
		case channelInput:
			if !closed {
				// Without a reader, what still comes is discarded.
				_, err := input.Write(data)
				closed = err != nil
			}
		case channelEnd:
			_ = input.Close()
			closed = true
		case channelResize:
			var size stdio.TerminalSize
			if json.Unmarshal(data, &size) != nil {
				continue
			}
			select { // the latest one counts
			case <-sizes:
			default:
			}
			sizes <- size
		}
	}
}

// Streams are a client's streams. A nil one is not joined.
type Streams struct {
	Input          io.Reader
	Output, Errors io.Writer
	Sizes          <-chan stdio.TerminalSize
	// Made is called when SessionRun has created its container.
	Made func(Made)
}

// Session runs a session over conn until it ends. The end of s.Input is passed
// on; a reader of it may stay behind, blocked, when the session is over.
func Session(ctx context.Context, conn grpc.ClientConnInterface, req SessionRequest, s Streams) (*SessionExit, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/"+Service+"/Session")
	if err != nil {
		return nil, err
	}
	f := &frames{stream: stream}
	req.Stdin, req.Output = s.Input != nil, s.Output != nil
	if err := f.sendJSON(channelRequest, req); err != nil && err != io.EOF {
		return nil, err
	}
	if s.Sizes != nil {
		go func() {
			for {
				select {
				case size := <-s.Sizes:
					_ = f.sendJSON(channelResize, size)
				case <-ctx.Done():
					return
				}
			}
		}()
	}
	return receiveOutput(f, s)
}

// sendInput passes the input on to its end. Errors of sending show where the
// answer is received.
func sendInput(f *frames, input io.Reader) {
	_, _ = io.Copy(writer{f, channelInput}, input)
	_ = f.send(channelEnd, nil)
}

func receiveOutput(f *frames, s Streams) (*SessionExit, error) {
	for {
		channel, data, err := f.receive()
		if err != nil {
			return nil, err
		}
		out := io.Writer(nil)
		switch channel {
		case channelOutput:
			out = s.Output
		case channelErrors:
			out = s.Errors
		case channelMade:
			var m Made
			if err := json.Unmarshal(data, &m); err != nil {
				return nil, err
			}
			if s.Made != nil {
				s.Made(m)
			}
		case channelReady:
			// Not before: a session that fails leaves the input to the next one.
			if s.Input != nil {
				go sendInput(f, s.Input)
			}
		case channelEnd:
			if c, ok := s.Output.(interface{ CloseWrite() error }); ok {
				_ = c.CloseWrite()
			}
		case channelExit:
			exit := &SessionExit{}
			return exit, json.Unmarshal(data, exit)
		}
		if out != nil {
			if _, err := out.Write(data); err != nil {
				return nil, fmt.Errorf("write the session's output: %w", err)
			}
		}
	}
}
