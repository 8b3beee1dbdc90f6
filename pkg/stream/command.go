package stream

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
	utilexec "k8s.io/utils/exec"

	"github.com/subpod/subpod/pkg/stdio"
)

// session is an exec or an attach, to be run over some protocol.
type session struct {
	options remotecommand.Options
	attach  bool
	running chan struct{} // of size 1: full while the backend's call runs
	run     func(ctx context.Context, s stdio.Streams) (exit int32, err error)
}

func newExecSession(b Backend, req *runtimeapi.ExecRequest) *session {
	return &session{
		running: make(chan struct{}, 1),
		options: remotecommand.Options{Stdin: req.Stdin, Stdout: req.Stdout, Stderr: req.Stderr, TTY: req.Tty},
		run: func(ctx context.Context, s stdio.Streams) (int32, error) {
			return b.Exec(ctx, req.ContainerId, req.Cmd, s)
		},
	}
}

func newAttachSession(b Backend, req *runtimeapi.AttachRequest) *session {
	return &session{
		running: make(chan struct{}, 1),
		options: remotecommand.Options{Stdin: req.Stdin, Stdout: req.Stdout, Stderr: req.Stderr, TTY: req.Tty},
		attach:  true,
		run: func(ctx context.Context, s stdio.Streams) (int32, error) {
			return 0, b.Attach(ctx, req.ContainerId, s)
		},
	}
}

// serveCommand runs an exec or attach over the protocol that the client asks for.
func (s *Server) serveCommand(w http.ResponseWriter, r *http.Request, sess *session) {
	done := make(chan any, 1)
	go func() {
		defer func() { done <- recover() }()
		s.serveProtocol(w, r, sess)
	}()
	var failed any
	select {
	case failed = <-done:
	case <-r.Context().Done():
		// spdystream never wakes who writes to a stream whose reply could not be
		// sent, and the library writes the status to such a stream when a client
		// is gone while it opens streams. That goroutine is given up: it holds
		// no lock and no descriptor, and the backend's call has returned.
		sess.running <- struct{}{} // a call that comes later sees the context's end
		<-sess.running
		select {
		case failed = <-done:
		case <-time.After(giveUp):
			s.options.Log.Debug("streaming session given up: its client is gone")
		}
	}
	if failed != nil {
		panic(failed) // for net/http to log, as if there were no goroutine
	}
}

// giveUp is how long the library may take to end a session without a client.
const giveUp = time.Second

func (s *Server) serveProtocol(w http.ResponseWriter, r *http.Request, sess *session) {
	idle, creation := s.options.IdleTimeout, s.options.CreationTimeout
	switch {
	case wsstream.IsWebSocketRequestWithStreamCloseProtocol(r):
		s.serveV5(w, r, sess)
	case sess.attach:
		remotecommand.ServeAttach(w, r, sess, "", "", "", &sess.options, idle, creation, remotecommand.SupportedStreamingProtocols)
	default:
		remotecommand.ServeExec(w, r, sess, "", "", "", nil, &sess.options, idle, creation, remotecommand.SupportedStreamingProtocols)
	}
}

// ExecInContainer implements remotecommand.Executor. Names and command are
// those of the session, not of the call.
func (sess *session) ExecInContainer(ctx context.Context, _, _, _ string, _ []string, in io.Reader, out, errw io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	exit, err := sess.serve(ctx, in, out, errw, resize)
	if err == nil && exit != 0 {
		// This type is what makes the library send an exit code instead of
		// an internal error.
		return utilexec.CodeExitError{Code: int(exit), Err: fmt.Errorf("command terminated with exit code %d", exit)}
	}
	return err
}

// AttachContainer implements remotecommand.Attacher.
func (sess *session) AttachContainer(ctx context.Context, _, _, _ string, in io.Reader, out, errw io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	_, err := sess.serve(ctx, in, out, errw, resize)
	return err
}

// serve runs the session and returns when the client's side has taken all
// output, so that the status comes after it; see clientConn.
func (sess *session) serve(ctx context.Context, in io.Reader, out, errw io.Writer, resize <-chan remotecommand.TerminalSize) (int32, error) {
	sess.running <- struct{}{}
	defer func() { <-sess.running }()
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	stdin := &input{r: in}
	exit, err := sess.run(ctx, sess.streams(ctx, stdin, out, errw, resize))
	if sess.options.Stdin {
		go stdin.discard()
	}
	if c := connOf(ctx); c != nil {
		c.flush()
	}
	return exit, err
}

// output is a session's stdout or stderr. A write to a stream of SPDY whose
// reply could not be sent blocks for ever; here it fails.
type output struct{ w io.Writer }

// Write implements io.Writer.
func (o output) Write(p []byte) (int, error) {
	// It sends nothing, and returns nil, if there was a reply.
	if s, ok := o.w.(interface{ SendReply(http.Header, bool) error }); ok {
		if err := s.SendReply(http.Header{}, false); err != nil {
			return 0, err
		}
	}
	return o.w.Write(p)
}

// input is a session's stdin. A backend may still be in a read of it when the
// command has ended, and must not hold up the connection's reader then.
type input struct {
	ended atomic.Bool
	mu    sync.Mutex // held during a read: the library's streams allow one at a time
	r     io.Reader
}

// Read implements io.Reader.
func (i *input) Read(p []byte) (int, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.ended.Load() {
		return 0, io.EOF
	}
	return i.r.Read(p)
}

// discard ends the input for its readers, and throws away what the client still
// sends until the connection ends.
func (i *input) discard() {
	i.ended.Store(true)
	i.mu.Lock()
	defer i.mu.Unlock()
	_, _ = io.Copy(io.Discard, i.r)
}

// streams picks what the request asked for: over a WebSocket the library hands
// out all of them.
func (sess *session) streams(ctx context.Context, in io.Reader, out, errw io.Writer, resize <-chan remotecommand.TerminalSize) stdio.Streams {
	st := stdio.Streams{TTY: sess.options.TTY}
	if sess.options.Stdin {
		st.Stdin = in
	}
	if sess.options.Stdout {
		st.Stdout = output{out}
	}
	if sess.options.Stderr {
		st.Stderr = output{errw}
	}
	switch {
	case resize == nil:
	case st.TTY:
		sizes := make(chan stdio.TerminalSize)
		st.Resize = sizes
		go latest(ctx, resize, sizes)
	default:
		// Unread sizes would stop the connection's reader, and with it stdin.
		go func() {
			for range resize {
			}
		}()
	}
	return st
}

// latest hands on terminal sizes, and forgets those that nobody took before the
// next one came: a process that does not look at its terminal's size must not
// hold up its stdin. It ends with in or ctx, and closes out.
func latest(ctx context.Context, in <-chan remotecommand.TerminalSize, out chan<- stdio.TerminalSize) {
	defer close(out)
	var size stdio.TerminalSize
	var ready chan<- stdio.TerminalSize // nil, and so never chosen, when there is nothing to hand on
	for in != nil || ready != nil {
		select {
		case s, ok := <-in:
			if !ok {
				in = nil
				continue
			}
			size, ready = stdio.TerminalSize(s), out
		case ready <- size:
			ready = nil
		case <-ctx.Done():
			return
		}
	}
}

// The channels of v5.channel.k8s.io, by number.
const (
	channelStdin = iota
	channelStdout
	channelStderr
	channelError
	channelResize
	channelCount
)

// serveV5 runs a session over the WebSocket subprotocol v5.channel.k8s.io: that
// of version 4, and a message {255, N} from the client ends channel N.
func (s *Server) serveV5(w http.ResponseWriter, r *http.Request, sess *session) {
	channels := make([]wsstream.ChannelType, channelCount)
	set := func(n int, wanted bool, t wsstream.ChannelType) {
		if channels[n] = wsstream.IgnoreChannel; wanted {
			channels[n] = t
		}
	}
	set(channelStdin, sess.options.Stdin, wsstream.ReadChannel)
	set(channelStdout, sess.options.Stdout, wsstream.WriteChannel)
	set(channelStderr, sess.options.Stderr, wsstream.WriteChannel)
	set(channelError, true, wsstream.WriteChannel)
	set(channelResize, true, wsstream.ReadChannel)
	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{
		remotecommand.StreamProtocolV5Name: {Binary: true, Channels: channels},
	})
	conn.SetIdleTimeout(s.options.IdleTimeout)
	_, streams, err := conn.Open(w, r)
	if err != nil {
		s.options.Log.Debug("WebSocket handshake failed", "error", err)
		return
	}
	defer conn.Close()

	// An empty message says that the session is open.
	ready := streams[channelError]
	for n, wanted := range []bool{channelStdout: sess.options.Stdout, channelStderr: sess.options.Stderr} {
		if wanted {
			ready = streams[n]
			break
		}
	}
	if _, err := ready.Write(nil); err != nil {
		return
	}
	resize := make(chan remotecommand.TerminalSize)
	go readSizes(r.Context(), streams[channelResize], resize)
	exit, err := sess.serve(r.Context(), streams[channelStdin], streams[channelStdout], streams[channelStderr], resize)
	if _, err := streams[channelError].Write(status(exit, err)); err != nil {
		s.options.Log.Debug("client was gone before the exit status", "error", err)
	}
}

// maxSize bounds one terminal size in JSON.
const maxSize = 4096

// readSizes hands on the terminal sizes that a client sends, a JSON object
// each, until the stream ends, is malformed, or ctx is done; then it closes out.
func readSizes(ctx context.Context, r io.Reader, out chan<- remotecommand.TerminalSize) {
	defer close(out)
	bounded := &io.LimitedReader{R: r}
	decoder := json.NewDecoder(bounded)
	for {
		bounded.N = maxSize
		var size remotecommand.TerminalSize
		if decoder.Decode(&size) != nil {
			// What still comes is thrown away: the connection's reader would
			// wait for us otherwise, and with it stdin.
			_, _ = io.Copy(io.Discard, r)
			return
		}
		select {
		case out <- size:
		case <-ctx.Done():
			return
		}
	}
}

// status is what the error channel carries at the end: a metav1.Status in JSON,
// with the exit code as a cause (remotecommand protocol, version 4).
func status(exit int32, err error) []byte {
	type cause struct {
		Reason  string `json:"reason"`
		Message string `json:"message"`
	}
	type details struct {
		Causes []cause `json:"causes"`
	}
	st := struct {
		Status  string   `json:"status"`
		Message string   `json:"message,omitempty"`
		Reason  string   `json:"reason,omitempty"`
		Details *details `json:"details,omitempty"`
		Code    int      `json:"code,omitempty"`
	}{Status: "Success"}
	switch {
	case err != nil:
		st.Status, st.Reason, st.Code = "Failure", "InternalError", http.StatusInternalServerError
		st.Message = err.Error()
	case exit != 0:
		st.Status, st.Reason = "Failure", remotecommand.NonZeroExitCodeReason
		st.Message = fmt.Sprintf("command terminated with exit code %d", exit)
		st.Details = &details{[]cause{{remotecommand.ExitCodeCauseType, fmt.Sprint(exit)}}}
	}
	text, err := json.Marshal(st)
	if err != nil { // strings and numbers: cannot be
		return []byte(`{"status":"Failure","reason":"InternalError"}`)
	}
	return text
}
