package netns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Forward copies between a port-forward's stream and a connection into the pod
// until both directions have ended, and closes conn. The end of one direction
// is passed on and leaves the other open, as with TCP itself: what the pod has
// sent arrives also when the pod takes no more. Close on the stream ends the
// direction towards the client; a stream with a method Reset() error is reset
// when the connection fails. Forward returns an error when the pod's side
// failed, and nil when ctx ended or the client reset the stream: then the pod's
// connection is reset, unless the client had ended its direction before.
func Forward(ctx context.Context, stream io.ReadWriteCloser, conn net.Conn) error {
	f := &forward{stream: stream, conn: conn, failed: make(chan struct{}), done: make(chan struct{})}
	defer conn.Close()
	stop := context.AfterFunc(ctx, f.abort)
	defer stop()

	go f.toPod(ctx)
	_, err := io.Copy(toClient{f}, onlyReader{conn})
	if err != nil {
		f.abort()
	} else {
		_ = stream.Close()
	}
	select {
	case <-f.done:
	case <-f.failed:
		f.reset() // neither direction is left
		<-f.done
	}
	if ctx.Err() != nil || err == nil || errors.Is(err, net.ErrClosed) || errors.Is(err, errReset) {
		return nil
	}
	return fmt.Errorf("from the pod to the client: %w", err)
}

// errReset is returned when the client has reset the stream.
var errReset = errors.New("stream reset by the client")

type forward struct {
	stream io.ReadWriteCloser
	conn   net.Conn
	once   sync.Once
	ended  atomic.Bool   // the client's direction, and the pod has got all of it
	failed chan struct{} // closed when the pod takes no more
	done   chan struct{} // closed when nothing reads from the stream any more
}

// toPod copies the client's direction.
func (f *forward) toPod(ctx context.Context) {
	defer close(f.done)
	_, err := io.Copy(onlyWriter{f.conn}, onlyReader{f.stream})
	switch {
	case err == nil && ctx.Err() != nil:
		f.abort() // the stream has no end of its own when its client is gone
	case err == nil:
		f.ended.Store(true)
		if c, ok := f.conn.(interface{ CloseWrite() error }); ok {
			_ = c.CloseWrite() // ENOTCONN: the pod was faster
		}
		// A reset looks like an end at first.
		time.AfterFunc(100*time.Millisecond, func() {
			if f.isReset() {
				f.abort()
			}
		})
	default:
		close(f.failed)
		// What the client still sends must not hold up its other connections.
		if _, err := io.Copy(io.Discard, onlyReader{f.stream}); err != nil {
			f.abort()
		}
	}
}

// abort ends both directions. It is idempotent.
func (f *forward) abort() {
	f.once.Do(func() {
		if c, ok := f.conn.(interface{ SetLinger(int) error }); ok && !f.ended.Load() {
			_ = c.SetLinger(0) // the pod must not take this for the end of the data
		}
		_ = f.conn.Close()
		f.reset()
	})
}

func (f *forward) reset() {
	if r, ok := f.stream.(interface{ Reset() error }); ok {
		_ = r.Reset()
	} else {
		_ = f.stream.Close()
	}
}

// isReset reports whether the stream takes no more data. Streams of SPDY throw
// away what is written after the client has reset them, without an error.
func (f *forward) isReset() bool {
	s, ok := f.stream.(interface{ IsFinished() bool })
	return ok && s.IsFinished()
}

// toClient writes to the stream until the client resets it.
type toClient struct{ f *forward }

// Write implements io.Writer.
func (w toClient) Write(p []byte) (int, error) {
	if w.f.isReset() {
		return 0, errReset
	}
	return w.f.stream.Write(p)
}

// onlyReader and onlyWriter keep io.Copy from finding other methods, whose
// semantics for half-closed streams are nobody's contract.
type (
	onlyReader struct{ io.Reader }
	onlyWriter struct{ io.Writer }
)
